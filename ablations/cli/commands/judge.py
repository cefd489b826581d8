"""`ablate judge`: the verdict on runs that another program logged."""

import argparse
from pathlib import Path

from ablations.cli.command import Command


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source",
        metavar="LOGS",
        help="a .csv, .tsv, .jsonl or .parquet file, a folder of TensorBoard events or of W&B offline runs, "
        "wandb:ENTITY/PROJECT, or optuna:STORAGE",
    )
    parser.add_argument("--control", required=True, metavar="ARM", help="the arm that others are compared with")
    parser.add_argument(
        "--metric", required=True, action="append", metavar="NAME[:min|:max]",
        help="a column to compare, and which is better; the first decides, others are secondary",
    )  # fmt: skip
    parser.add_argument("--arm", metavar="COLUMN", help="column of a run's arm")
    parser.add_argument("--arms", metavar="A,B,...", help="instead of --arm: columns that each hold an arm's values")
    parser.add_argument("--seed", default="seed", metavar="COLUMN", help="column of a run's seed (default: seed)")
    parser.add_argument("--step", metavar="COLUMN", help="column of steps, where a run has a row for each")
    parser.add_argument("--status", metavar="COLUMN", help="column that says whether a run was finished")
    parser.add_argument(
        "--at", metavar="STEP", help="compare runs at this step; 'end': as they end, whatever their steps"
    )
    parser.add_argument(
        "--pattern", default="{arm}/{seed}", metavar="FORM",
        help="form of the folders of event files (default: {arm}/{seed})",
    )  # fmt: skip
    parser.add_argument("--margin", type=float, metavar="X", help="largest difference that counts as none")
    parser.add_argument("--alpha", type=float, default=0.05, metavar="P", help="family-wise level (default: 0.05)")
    parser.add_argument("--name", metavar="NAME", help="name of the report's folder (default: after LOGS)")
    parser.add_argument("--question", metavar="TEXT", help="the question that the report answers")
    parser.add_argument(
        "--files", type=Path, metavar="FOLDER", help="write tables (CSV, Markdown, LaTeX) and figures (SVG, PNG, PDF)"
    )


COMMAND = Command(
    "judge",
    "compare runs that another program logged: verdict and report.html",
    options,
    json=True,
    usage="judge LOGS --arm COLUMN --seed COLUMN --metric COLUMN --control ARM [options]",
    checks=("out",),
)
