"""`ablate list`: the studies in `ablations/`, what has been run, and the verdicts so far."""

import argparse
from pathlib import Path
from types import ModuleType
from typing import Any

from rich.text import Text

from ablations.cli import studies
from ablations.cli.kinds import module_of
from ablations.cli.terminal import console, indented, show_json
from analysis.study import Study
from analysis.verdicts.judge import judge
from core.errors import UserError
from core.runtime.printable import say
from core.runtime.terminal import line
from core.runtime.units import counted
from sweeps.runs.history import add_look
from sweeps.studies.ablation import Ablation


def run_list(arguments: argparse.Namespace) -> int:
    """Print a row for each question and size. Returns 1 where a declaration can't be read."""
    found = [each for name in studies.discover() for each in _rows(name, arguments.out)]
    rows = [row for _, row in found]
    if arguments.names:
        say("\n".join(f"{row['name']} {row['size']}" for row in rows if "error" not in row))
    elif arguments.json:
        show_json(rows)
    else:
        out = console()
        for module, row in found:
            head = Text.assemble(line(row["name"], "bold"), " ", line(row["size"], "dim"), "  ")
            if module is None:
                out.print(head + line(row["error"], "red"))
                continue
            out.print(head + module.in_short(row))
            out.print(indented(row["question"]))
            if row.get("verdict"):
                out.print(indented(f"→ {row['verdict']}"))
                for note in row["notes"]:
                    out.print(indented(f"note: {note}"))
    return 1 if any("error" in row for row in rows) else 0


def _rows(name: str, out: Path) -> list[tuple[ModuleType | None, dict[str, Any]]]:
    """The rows of a declaration, JSON-ready, each with the module of its kind; None with the error of a broken one."""
    try:
        _, declaration = studies.declared(name)
        module = module_of(declaration.kind, "list")
        return [(module, row) for row in module.rows(name, declaration, out)]
    except UserError as error:  # one broken declaration hides no other
        return [(None, {"name": name, "size": "", "error": str(error)})]


def rows(name: str, ablation: Ablation, out: Path) -> list[dict[str, Any]]:
    """A row for each size: arms, seeds, recorded runs, the verdict."""
    rows = []
    recorded = studies.recorded_sizes(out, name, ablation)
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
            add_look(recorded[size], "list", len(study.design.seeds), study.complete)
        rows.append(row)
    return rows


def in_short(row: dict[str, Any]) -> Text:
    """A row's arms and seeds, and how many of its runs are recorded."""
    what = counted(row["arms"], "arm") if row["arms"] else f"ladder of {row['models']} models"
    said = line(f"{what} x {counted(row['seeds'], 'seed')}, ")
    if not row["complete"] and not row["failed"]:
        return said + line("not run", "dim")
    said += line(f"{counted(row['complete'], 'run')} complete")
    return said + line(", ") + line(f"{row['failed']} failed", "red") if row["failed"] else said
