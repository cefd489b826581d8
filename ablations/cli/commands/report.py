"""`ablate report`: print the verdict and write report.html."""

import argparse
from pathlib import Path

from ablations.cli.command import Command


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--files", type=Path, metavar="FOLDER", help="write tables (CSV, Markdown, LaTeX) and figures (SVG, PNG, PDF)"
    )


COMMAND = Command("report", options=options, study=True, json=True, checks=("records",), changes="shown")
