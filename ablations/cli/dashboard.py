"""`ablate dashboard NAME --wandb ENTITY/PROJECT`: the sweep's W&B workspace and report."""

import argparse

from ablations.cli.commands import console, load_study, show_json
from analysis.files import as_markdown, sheets
from analysis.verdicts import judge
from core.errors import UserError
from sweeps.dashboards import Content, place_of, save


def run_dashboard(arguments: argparse.Namespace) -> int:
    """Save the workspace and the report, and say where they are."""
    if arguments.wandb is None:
        raise UserError("say where: --wandb ENTITY/PROJECT")
    place_of(arguments.wandb)
    study, folder = load_study(arguments)
    judgement = judge(study)
    failures = [
        f"{study.labels[arm]}, seed {seed}: {record.reason}"
        for (arm, seed), record in study.cells.items()
        if record.status == "failed"
    ]
    content = Content(judgement.headline, [as_markdown(sheet) for sheet in sheets(judgement)], failures)
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
