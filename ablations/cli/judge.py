"""`ablate judge`: other programs' logs, judged and shown as a study of our own."""

import argparse
import math
import re
import shlex
from pathlib import Path

from ablations.cli.report import show_report
from analysis.logs.runs import Columns, cut_to, runs_of
from analysis.logs.study import Asked, goal_of, study_of
from analysis.report.html import write_report
from analysis.verdicts.judge import judge
from core.errors import UserError
from core.records.designs import FILE_NAME
from core.records.log_rows import Log
from sweeps.logs.sources import read_logs
from sweeps.studies.study import SIZE, check_decides


def run_judge(arguments: argparse.Namespace) -> int:
    """Read the logs, judge them, and write the page and, with --files, tables and figures."""
    check_decides(arguments.alpha, 0.8, arguments.margin)
    goals, notes = _goals(arguments.metric)
    folder = _folder(arguments)
    log = read_logs(arguments.source, arguments.pattern)
    columns = _columns(arguments, log, tuple(goals))
    runs = runs_of(log, columns)
    notes += cut_to(runs, tuple(goals), _at(arguments.at), as_they_end=arguments.at == "end")
    question = (
        arguments.question
        or f"How do the arms of {Path(arguments.source).name} differ from {arguments.control} in {next(iter(goals))}?"
    )
    asked = Asked(
        folder.name, question, arguments.control, goals, arguments.margin, arguments.alpha, command=_command(arguments)
    )
    judgement = judge(study_of(runs, asked, [arguments.source], notes, step=columns.step))
    path = folder / "report.html"
    write_report(judgement.study, judgement, path)
    return show_report(arguments, judgement, path)


def _goals(named: list[str]) -> tuple[dict[str, str], list[str]]:
    goals, notes = dict[str, str](), []
    for each in named:
        name, separator, goal = each.rpartition(":")
        if separator and goal not in ("min", "max"):
            name, goal = each, ""  # a colon of the name
        name = name or each
        if name in goals:
            raise UserError(f"--metric {name} is given twice")
        goals[name], note = goal_of(name, goal if separator and goal in ("min", "max") else None)
        notes += [note] if note else []
    return goals, notes


def _folder(arguments: argparse.Namespace) -> Path:
    """The folder of the report. Raises UserError for one that holds runs of a study."""
    stem = re.sub(r"[^A-Za-z0-9_.-]+", "-", Path(arguments.source.split(":")[-1]).stem).strip("-.") or "logs"
    name = arguments.name or stem
    if SIZE.fullmatch(name) is None:
        raise UserError(f"--name {name!r}: a name needs letters, digits, '-', '_' and '.', as it names a folder")
    folder: Path = arguments.out / name
    if (folder / FILE_NAME).exists():
        raise UserError(f"{folder} holds the runs of a study: give the report another --name")
    return folder


def _columns(arguments: argparse.Namespace, log: Log, metrics: tuple[str, ...]) -> Columns:
    wide = tuple(name.strip() for name in arguments.arms.split(",")) if arguments.arms else ()
    arm = arguments.arm or ("arm" if any("arm" in row.values for row in log.rows) else None)
    if wide and (arguments.arm or len(metrics) > 1):
        raise UserError("--arms names a column for each arm, of one metric: leave --arm and other metrics out")
    if not wide and arm is None:
        names = ", ".join(list(dict.fromkeys(name for row in log.rows for name in row.values))[:12])
        raise UserError(
            f"--arm: name the column of a run's arm (there are {names}), or the arms' own columns by --arms"
        )
    return Columns(
        metrics, arguments.seed, None if wide else arm, wide, arguments.step or log.step, arguments.status or log.status
    )


def _at(said: str | None) -> float | None:
    if said in (None, "end"):
        return None
    try:
        step = float(said or "")
    except ValueError:
        step = math.nan
    if not math.isfinite(step):
        raise UserError(f"--at {said}: a step is needed, such as 1000, or 'end'")
    return step


def _command(arguments: argparse.Namespace) -> str:
    """The command as it was typed, for the report."""
    words = ["ablate", "judge", arguments.source, "--control", arguments.control]
    for name in ("arm", "arms", "step", "status", "at", "margin", "name", "question"):
        if (value := getattr(arguments, name)) is not None:
            words += [f"--{name}", str(value)]
    words += [word for each in arguments.metric for word in ("--metric", each)]
    words += ["--seed", arguments.seed] if arguments.seed != "seed" else []
    words += ["--alpha", f"{arguments.alpha:g}"] if arguments.alpha != 0.05 else []
    words += ["--pattern", arguments.pattern] if arguments.pattern != "{arm}/{seed}" else []
    return shlex.join(words)
