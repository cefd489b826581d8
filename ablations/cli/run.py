"""The commands: each takes parsed arguments and returns an exit status."""

import argparse
import json
import os
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from ablations.cli import studies as agenda
from ablations.cli.options import check_flags
from core.errors import UserError
from core.runtime.printable import say
from core.runtime.terminal import Terminal, line
from core.runtime.terminal_table import Column, Labelled
from core.runtime.units import counted
from sweeps.studies.ablation import Ablation

if TYPE_CHECKING:
    from analysis.study import Study
    from sweeps.launch.events import Summary
    from sweeps.studies.plan import Plan

INTERRUPTED = 130  # as shells report Ctrl-C
WIDTH = 80  # columns, where there is no terminal
LOOKS = "looks.jsonl"  # of a sweep that was bought until decided


def console() -> Console:
    """Where people read: standard output, as wide as the terminal; elsewhere as $COLUMNS says, or 80 columns."""
    columns = os.environ.get("COLUMNS", "")
    elsewhere = int(columns) if columns.isdigit() and int(columns) else WIDTH
    return Terminal(width=None if os.isatty(1) else elsewhere)


def indented(text: str) -> Padding:
    """A paragraph whose every line is two columns in."""
    return Padding(line(text), (0, 0, 0, 2))


def show_json(content: Any) -> None:
    """One JSON document on standard output."""
    print(json.dumps(content, indent=2, allow_nan=False, default=str))


def run_list(arguments: argparse.Namespace) -> int:
    """The agenda: each question, arms x seeds, what has been run, the verdict so far."""
    rows = [row for name in agenda.discover() for row in _agenda_rows(name, arguments)]
    if arguments.names:
        say("\n".join(f"{row['name']} {row['size']}" for row in rows if "error" not in row))
    elif arguments.json:
        show_json(rows)
    else:
        out = console()
        for row in rows:
            head = Text.assemble(line(row["name"], "bold"), " ", line(row["size"], "dim"), "  ")
            if "error" in row:
                out.print(head + line(row["error"], "red"))
                continue
            if "budget" in row:
                out.print(head + line(f"search, {row['budget']}, {row['so_far']}"))
                out.print(indented(row["question"]))
                continue
            what = counted(row["arms"], "arm") if row["arms"] else f"ladder of {row['models']} models"
            out.print(head + line(f"{what} x {counted(row['seeds'], 'seed')}, ") + _so_far(row))
            out.print(indented(row["question"]))
            if row["verdict"]:
                out.print(indented(f"→ {row['verdict']}"))
                for note in row["notes"]:
                    out.print(indented(f"note: {note}"))
    return 1 if any("error" in row for row in rows) else 0


def _agenda_rows(name: str, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    from analysis.study import Study
    from analysis.verdicts.judge import judge
    from sweeps.runs.history import add_look

    try:
        _, ablation = agenda.declared(name)
        if not isinstance(ablation, Ablation):
            from ablations.cli.searching import agenda_rows

            return agenda_rows(name, ablation, arguments.out)
        rows = []
        recorded = agenda.recorded_sizes(arguments.out, name, ablation)
        for size in ("full", *ablation.sizes):
            edition = ablation.sized(size)
            row: dict[str, Any] = {"name": name, "size": size, "question": edition.question}
            row |= edition.source.summary()
            row |= {"seeds": len(edition.seeds), "complete": 0, "failed": 0, "verdict": None}
            study = Study.load(recorded[size]) if size in recorded else None
            if study is not None:
                judgement = judge(study, brief=True)
                row |= {"complete": study.complete, "failed": study.failed, "verdict": judgement.headline}
                row["notes"] = list(judgement.notes)
                add_look(recorded[size], "list", len(study.design["seeds"]), study.complete)
            rows.append(row)
        return rows
    except UserError as error:  # one broken declaration hides no other
        return [{"name": name, "size": "", "error": str(error)}]


def _so_far(row: dict[str, Any]) -> Text:
    if not row["complete"] and not row["failed"]:
        return line("not run", "dim")
    complete = line(f"{counted(row['complete'], 'run')} complete")
    return complete + line(", ") + line(f"{row['failed']} failed", "red") if row["failed"] else complete


def run_plan(arguments: argparse.Namespace) -> int:
    """Arms, parameters, FLOPs, time, and the smallest effect that the design can detect."""
    if agenda.is_search(arguments.name):
        from ablations.cli import searching

        return searching.run_plan(arguments)
    from ablations.cli.plan import describe_plan, print_plan
    from analysis.study import uncollected

    with uncollected() if arguments.no_calibration else nullcontext():
        content = describe_plan(arguments)
    if arguments.json:
        show_json(content)
    else:
        print_plan(content, console())
    if content["refused"] and not arguments.exploratory:
        raise UserError(f"{content['refused']} (--exploratory plans it anyway)")
    return 0


def run_run(arguments: argparse.Namespace) -> int:
    """Train what isn't recorded yet: here, or on a cluster."""
    if arguments.block and not arguments.until_decided:
        raise UserError("--block is an option of --until-decided: add that, or leave it out")
    if agenda.is_search(arguments.name):
        from ablations.cli import searching

        if arguments.until_decided:
            raise UserError(f"--until-decided is for ablations; {arguments.name} is a search, which its budget ends")
        return searching.run_run(arguments)
    from ablations.cli.declarations import say_before
    from ablations.cli.plan import make_plan, power_of
    from core.data.corpora import describe

    check_flags(arguments)
    plan = make_plan(arguments)
    refused = power_of(plan.design)["refused"]
    if refused and not arguments.exploratory:
        raise UserError(f"{refused} (--exploratory runs it anyway)")
    say("\n".join(describe(run.config.data for run in plan.runs)))
    if arguments.until_decided:
        from ablations.cli.until_decided import run_until_decided

        return run_until_decided(arguments, plan)
    if os.path.lexists(looks := arguments.out / plan.study_name / LOOKS):
        from ablations.cli.looks import check_not_looked_at

        check_not_looked_at(looks.parent, plan.design)
    say_before(arguments.out / plan.study_name, plan)
    if arguments.launcher == "slurm":
        from ablations.cli import retry as cluster

        return cluster.submit(arguments, plan, retry_failed=arguments.retry_failed)
    summary = train_here(arguments, plan, retry_failed=arguments.retry_failed)
    if summary.interrupted:
        return INTERRUPTED
    out = console()
    failed = summary.failed + summary.failed_before
    undecoded = 0
    if "decoders" in plan.design:
        from ablations.cli.decode import decode_here

        undecoded = decode_here(arguments, plan, out)
    out.print(
        f"{plan.study_name}: {counted(summary.done, 'run')} trained, {summary.reused} recorded before, {failed} failed, "
        f"{summary.missing} missing"
    )
    if summary.elsewhere:
        out.print(trained_elsewhere(arguments, summary.elsewhere, plan.size))
    out.print(f"next: {agenda.command('report', arguments, plan.size)}", markup=False)
    if failed:
        out.print(line("some runs failed", "red") + line(": the report names them; --retry-failed runs them again"))
    return 1 if failed or summary.missing or undecoded else 0


def trained_elsewhere(arguments: argparse.Namespace, count: int, size: str) -> str:
    """That another process trains what is left, and how to follow it."""
    follow = agenda.command("status", arguments, size)
    return f"{counted(count, 'run')} in training by another process, which records them: {follow} follows it"


def train_here(arguments: argparse.Namespace, plan: "Plan", *, retry_failed: bool) -> "Summary":
    """Train what a plan has no record of yet on this machine, its progress on the terminal."""
    from ablations.cli.plan import resolve_workers
    from sweeps.launch.local import run
    from sweeps.launch.progress import present

    workers = resolve_workers(arguments.workers, plan)
    with present(plan) as on_event:
        return run(
            plan,
            arguments.out,
            storage_url=arguments.storage,
            workers=workers,
            on_event=on_event,
            retry_failed=retry_failed,
        )


def run_report(arguments: argparse.Namespace) -> int:
    """The verdict table, and report.html beside the records."""
    if agenda.is_search(arguments.name):
        from ablations.cli import searching

        return searching.run_report(arguments)
    from analysis.report.html import write_report
    from analysis.report.terminal import terminal_table
    from analysis.verdicts.judge import judge
    from sweeps.runs.history import add_look

    study, folder = load_study(arguments)
    judgement = judge(study)
    if said := getattr(arguments, "drift", ""):
        judgement = replace(judgement, notes=(*judgement.notes, f"{said[0].upper()}{said[1:]}."))
    path = folder / "report.html"
    write_report(study, judgement, path)
    add_look(folder, "report", len(study.design["seeds"]), study.complete)
    files = []
    if arguments.files is not None:
        from analysis.report.files import write_files

        files = write_files(study, judgement, arguments.files)
    if arguments.json:
        show_json(judgement.to_dict() | {"report": str(path), "files": [str(file) for file in files]})
        return 0
    out = console()
    out.print(terminal_table(judgement))
    out.print(f"report: {path}", markup=False, soft_wrap=True)
    if files:
        out.print(f"{len(files)} tables and figures: {arguments.files}", markup=False, soft_wrap=True)
    return 0


def run_doctor(arguments: argparse.Namespace) -> int:
    """What this machine has, and what that rules in or out."""
    from ablations.cli.doctor import as_json, examine

    findings = examine()
    if arguments.json:
        show_json(as_json(findings))
        return 0
    table = Labelled(None, (Column(folds=True, justify="left"), Column(folds=True, justify="left")))
    for finding in findings:
        mark = line("✓ ", "green") if finding.ok else line("– ", "yellow")
        table.add(mark + line(finding.name, "bold"), line(finding.found), line(finding.means, "dim"))
    console().print(table)
    return 0


def load_study(arguments: argparse.Namespace) -> tuple["Study", Path]:
    """What is recorded of the named ablation in the size that is meant, and its folder. Raises UserError where nothing is."""
    from analysis.study import Study

    size, folder = agenda.recorded_folder(arguments)
    study = Study.load(folder)
    if study is None:
        raise agenda.nothing_recorded(arguments, Path(arguments.name).stem, size)
    return study, folder
