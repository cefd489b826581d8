"""`ablate report`: the verdict table and report.html."""

import argparse
from pathlib import Path

from ablations.cli.command import Command


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--files", type=Path, metavar="FOLDER", help="tables as CSV, Markdown and LaTeX, figures as SVG, PNG and PDF"
    )


COMMAND = Command(
    "report",
    "the verdict table and report.html",
    "ablations.cli.report:run_report",
    options,
    study=True,
    json=True,
    by_kind=True,
    checks=("declaration", "records"),
    changes="shown",
)
