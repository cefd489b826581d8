"""`ablate report`: the verdict table, and report.html beside the records."""

import argparse
from dataclasses import replace
from pathlib import Path

from ablations.cli.recorded import drift_note, load_study
from ablations.cli.terminal import console, show_json
from analysis.report.files import write_files
from analysis.report.html import write_report
from analysis.report.terminal import terminal_table
from analysis.verdicts.answer import Judgement
from analysis.verdicts.judge import judge
from sweeps.runs.history import add_look


def run_report(arguments: argparse.Namespace) -> int:
    """Judge what is recorded; write the page and, with --files, tables and figures."""
    study, folder = load_study(arguments)
    judgement = judge(study)
    judgement = replace(judgement, notes=(*judgement.notes, *drift_note(arguments)))
    path = folder / "report.html"
    write_report(study, judgement, path)
    add_look(folder, "report", len(study.design.seeds), study.complete)
    return show_report(arguments, judgement, path)


def show_report(arguments: argparse.Namespace, judgement: Judgement, path: Path) -> int:
    """Write tables and figures with --files, and print the answer, with --json as JSON. path: of the page. Returns 0."""
    files = write_files(judgement, arguments.files) if arguments.files is not None else []
    if arguments.json:
        show_json(judgement.to_dict() | {"report": str(path), "files": [str(file) for file in files]})
        return 0
    out = console()
    out.print(terminal_table(judgement))
    out.unwrapped(f"report: {path}")
    if files:
        out.unwrapped(f"{len(files)} tables and figures: {arguments.files}")
    return 0
