"""`ablate dashboard NAME`: a live page on this machine; with --wandb ENTITY/PROJECT, the sweep's W&B workspace and report."""

import argparse

from ablations.cli.run import console, load_study, show_json
from core.errors import UserError


def run_dashboard(arguments: argparse.Namespace) -> int:
    """Serve the page; or save W&B's workspace and report, and say where they are."""
    if arguments.wandb is None:
        if arguments.json:
            raise UserError("--json is for --wandb; `ablate status NAME --json` says in JSON where a study stands")
        from ablations.cli.watching import run_page

        return run_page(arguments)
    for name in ("port", "storage"):
        if getattr(arguments, name) is not None:
            raise UserError(f"--{name} is for the page on this machine, not for --wandb: leave one of them out")
    return _save(arguments)


def _save(arguments: argparse.Namespace) -> int:
    from analysis.report.files import as_markdown
    from analysis.table import tables_on
    from analysis.verdicts.judge import judge
    from sweeps.tracking.wandb_workspace import Content, place_of, save

    place_of(arguments.wandb)
    study, folder = load_study(arguments)
    judgement = judge(study)
    failures = [
        f"{study.labels[arm]}, seed {seed}: {record.reason}"
        for (arm, seed), record in study.cells.items()
        if record.status == "failed"
    ]
    content = Content(
        judgement.headline, [as_markdown(table) for table in tables_on(judgement.tables, "file")], failures
    )
    _check_credentials()
    saved = save(study.design, content, arguments.wandb, folder)
    if arguments.json:
        show_json(saved)
        return 0
    for name, address in saved.items():
        console().print(f"{name}: {address}", markup=False, soft_wrap=True)
    return 0


def _check_credentials() -> None:
    import wandb

    try:
        wandb.Api()
    except wandb.errors.Error as error:
        raise UserError(f"W&B: {str(error).splitlines()[0]}") from None
