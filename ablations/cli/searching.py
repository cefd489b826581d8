"""The commands for searches: plan, run, report, export, and their rows on the agenda."""

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ablations.cli import studies as agenda
from ablations.cli.export import named_arm
from ablations.cli.options import check_flags
from ablations.cli.run import INTERRUPTED, console, show_json, trained_elsewhere
from core.data.corpora import describe as describe_data
from core.errors import UserError
from core.runtime.printable import say
from core.runtime.units import counted, short
from sweeps.search.plan import SearchPlan, described, plan
from sweeps.search.results import Results, confirmation
from sweeps.search.spec import Search
from sweeps.storage.storage import choose_url
from sweeps.studies.study import CONFIRM, first_seeds, study_name


def agenda_rows(name: str, search: Search, out: Path) -> list[dict[str, Any]]:
    """A search's rows on the agenda, one for each size."""
    rows = []
    for size in ("full", *search.sizes):
        edition = search.sized(size)
        results = Results.load(out / study_name(name, size))
        trained = len(results.configurations) if results else 0
        confirmed = (out / study_name(study_name(name, size), CONFIRM)).is_dir()
        so_far = (
            f"{counted(trained, 'configuration')} trained" + (", confirmed" if confirmed else "")
            if trained
            else "not run"
        )
        budget = edition.budget
        said = counted(budget.trials, "configuration") if budget.trials else f"{short(budget.tokens or 0)} tokens"
        said += f" for each {edition.compare}" if edition.compare else ""
        rows.append({"name": name, "size": size, "question": edition.question, "budget": said, "so_far": so_far})
    return rows


def make_plan(arguments: argparse.Namespace) -> SearchPlan:
    """The plan that the arguments name. `--seeds N` sets the seeds inside each configuration."""
    name, search = agenda.declared(arguments.name)
    assert isinstance(search, Search)
    search = first_seeds(search, arguments.seeds)
    planned = plan(name, search, size=arguments.size or "full", overrides=arguments.settings)
    told = {"command": agenda.run_command(arguments, planned.size), "declared_in": agenda.declared_in(arguments.name)}
    return replace(planned, design={**planned.design, **told})


def run_plan(arguments: argparse.Namespace) -> int:
    """The space, the budget, and what they cost."""
    from ablations.cli.search_plan import describe, print_plan

    content = describe(make_plan(arguments), arguments)
    if arguments.json:
        show_json(content)
    else:
        print_plan(content, console())
    if content["refused"] and not arguments.exploratory:
        raise UserError(f"{content['refused']} (--exploratory plans it anyway)")
    return 0


def run_run(arguments: argparse.Namespace) -> int:
    """Search, then confirm the winners and the control on fresh seeds."""
    from ablations.cli import retry as cluster
    from ablations.cli.plan import resolve_workers
    from ablations.cli.search_plan import refusal
    from sweeps.launch.events import Event
    from sweeps.launch.local import run
    from sweeps.launch.progress import present
    from sweeps.runs.progress import CLOCK
    from sweeps.search.local import search

    check_flags(arguments)
    planned = make_plan(arguments)
    if (refused := refusal(planned)) and not arguments.exploratory:
        raise UserError(f"{refused} (--exploratory runs it anyway)")
    say("\n".join(describe_data([planned.resolver.control.data])))
    if arguments.launcher == "slurm":
        return cluster.submit(arguments, planned, retry_failed=arguments.retry_failed)
    control = planned.runs(planned.resolver.control_settings, planned.resolver.control)
    workers = resolve_workers(arguments.workers, replace(planned.sweep, runs=control))

    def tell(event: Event) -> None:
        say(f"{time.strftime(CLOCK)} {event.text}", file=sys.stderr)

    url = choose_url(arguments.storage, arguments.out.absolute(), arguments.out.absolute() / planned.study_name)
    options: dict[str, Any] = {"storage_url": url, "workers": workers, "retry_failed": arguments.retry_failed}
    counts, interrupted = search(planned, arguments.out, on_event=tell, **options)
    if interrupted:
        return INTERRUPTED
    results = Results.load(arguments.out / planned.study_name, planned.design)
    out = console()
    said = ", ".join(f"{count} {state}" for state, count in sorted(counts.items()))
    out.print(f"{planned.study_name}: {said}", markup=False)
    if results is None or not results.complete:
        raise RuntimeError(
            "no configuration was trained to the end, so there is nothing to confirm: see the failures above"
        )
    confirming = confirmation(planned, results)
    with present(confirming) as on_event:
        summary = run(confirming, arguments.out, on_event=on_event, **options)
    if summary.interrupted:
        return INTERRUPTED
    failed = summary.failed + summary.failed_before
    out.print(
        f"confirmation: {counted(summary.done + summary.reused, 'run')} on fresh seeds, {failed} failed, "
        f"{summary.missing} missing"
    )
    if summary.elsewhere:
        out.print(trained_elsewhere(arguments, summary.elsewhere, planned.size))
    out.print(f"next: {agenda.command('report', arguments, planned.size)}", markup=False)
    return 1 if failed or summary.missing else 0


def run_report(arguments: argparse.Namespace) -> int:
    """What was found and how it was confirmed, as one page; the confirmation has its own report beside its records."""
    from ablations.cli.report_search import confirmed, print_report, report
    from analysis.report.html import write_report
    from analysis.report.search import write_search_page
    from analysis.verdicts.judge import judge

    results, folder = _load(arguments)
    study = confirmed(results, folder)
    content = report(results, study)
    if said := getattr(arguments, "drift", ""):
        content["notes"].append(f"{said[0].upper()}{said[1:]}.")
    page, judgement = folder / "report.html", judge(study) if study is not None else None
    if study is not None and judgement is not None:
        write_report(study, judgement, folder.with_name(f"{folder.name}.{CONFIRM}") / "report.html")
        if arguments.files is not None:
            from analysis.report.files import write_files

            content["files"] = [str(file) for file in write_files(study, judgement, arguments.files)]
    elif arguments.files is not None:
        raise UserError(f"--files: {arguments.name} has no confirmed estimates yet, and those are what its tables show")
    write_search_page(content, judgement, page)
    content["report"] = str(page)
    if arguments.json:
        show_json(json.loads(json.dumps(content)))
        return 0
    print_report(content, study, console())
    return 0


def run_export(arguments: argparse.Namespace) -> int:
    """The confirmed winner as a config with its evidence."""
    from ablations.cli.report_search import confirmed, report
    from analysis.verdicts.arms import UNCONFIRMED
    from analysis.verdicts.judge import judge
    from sweeps.export.arm import export

    if arguments.format == "hf":
        raise UserError("--format hf: give the folder of one run; a search exports a config")
    results, folder = _load(arguments)
    study = confirmed(results, folder)
    target = arguments.to or folder / "export"
    found = report(results, study)
    if study is None or study.missing:
        if not arguments.force:
            raise UserError(
                f"{arguments.name}: its best isn't confirmed yet, and the best of many looks better than it is: "
                f"{results.design['command']} confirms it (--force exports it, marked as unconfirmed)"
            )
        return _export_unconfirmed(arguments, results, folder, found)
    judgement = judge(study)
    arm = arguments.arm or judgement.winner
    if arm is None:
        raise UserError(f"{arguments.name}: nothing can be exported: {judgement.winner_reason}")
    labels = {entry["name"]: [entry["label"]] for entry in study.design["arms"]}
    arm = named_arm(arm, labels, "was not confirmed; what was:")
    runs = [record for record in study.records_of(arm) if record.status == "complete"]
    reason = judgement.winner_reason.replace(UNCONFIRMED, "on fresh seeds")
    chosen = f"by the confirmation: {reason}" if arm == judgement.winner else "by hand (--arm)"
    entry = next(row for row in found["confirmation"]["arms"] if row["arm"] == arm)
    evidence = {"chosen": chosen, "confirmed": True, **{k: entry[k] for k in ("estimate", "low", "high", "n")}}
    evidence |= {"search": found} | judgement.to_dict()
    if arguments.target:
        return _at_full_scale(arguments, study.design, arm, runs, evidence, folder, by_hand=arm != judgement.winner)
    export(study.design, arm, runs, evidence, target)
    console().print(f"{arm}: {chosen}", markup=False)
    console().print(f"config: {target / 'config.yaml'}", markup=False, soft_wrap=True)
    return 0


def _export_unconfirmed(arguments: argparse.Namespace, results: Results, folder: Path, found: dict[str, Any]) -> int:
    from sweeps.export.arm import export

    finalists = results.finalists()
    if not finalists:
        raise UserError(f"{arguments.name}: no configuration is trained to the end yet: {results.design['command']}")
    known = {finalist: [described(found.settings)] for finalist, found in finalists.items()}
    name = named_arm(arguments.arm or next(iter(finalists)), known, "is no finalist; the finalists are")
    design = confirmation(SearchPlan.of_design(results.design), results).design
    arm = name if any(entry["name"] == name for entry in design["arms"]) else "control"
    evidence = {"chosen": "UNCONFIRMED: the best of the search's own values, which flatter it", "confirmed": False}
    told, target = evidence | {"search": found}, arguments.to or folder / "export"
    if arguments.target:
        by_hand = arguments.arm is not None
        return _at_full_scale(arguments, design, arm, finalists[name].records, told, folder, by_hand=by_hand)
    export(design, arm, finalists[name].records, told, target)
    console().print(f"{name}: unconfirmed; config: {target / 'config.yaml'}", markup=False, soft_wrap=True)
    return 0


def _at_full_scale(
    arguments: argparse.Namespace,
    design: Mapping[str, Any],
    arm: str,
    runs: Sequence[Any],
    told: Any,
    folder: Path,
    *,
    by_hand: bool,
) -> int:
    from ablations.cli.export import at_full_scale

    matched = agenda.declared(arguments.name)[1].match is not None
    target = arguments.to or folder / "export" / Path(arguments.target).stem
    return at_full_scale(arguments, design, arm, runs, told, target, by_hand=by_hand, matched=matched)


def _load(arguments: argparse.Namespace) -> tuple[Results, Path]:
    name, search = agenda.declared(arguments.name)
    recorded = agenda.recorded_sizes(arguments.out, name, search)
    size = agenda.meant_size(name, search, arguments.out, arguments.size)
    results = Results.load(recorded[size]) if size in recorded else None
    if results is None:
        raise UserError(
            f"nothing is recorded of {name} ({size}) in {arguments.out.absolute()}: {agenda.command('run', arguments, size)}"
        )
    return results, recorded[size]
