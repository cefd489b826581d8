"""A report's tables and figures as files for a paper: CSV, Markdown and LaTeX; SVG, PNG and PDF."""

import csv
import io
from collections.abc import Callable, Sequence
from pathlib import Path

from analysis.frame import Study
from analysis.report import number, pictures, pvalue, signed
from analysis.verdicts import Judgement, MetricTable
from core.records import write_atomically

LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "−": "$-$", "<": "$<$", ">": "$>$", "|": "$|$",
}  # fmt: skip
EXACT = (
    "arm", "label", "mean", "sd", "n", "estimate", "low", "high", "pvalue", "p_holm", "p_equivalence", "effect_size",
    "correlation", "verdict",
)  # fmt: skip
SHOWN = ("arm", "mean", "effect", "95 % interval", "Holm p", "n", "verdict")
FORMATS = ("svg", "png", "pdf")


def write_files(study: Study, judgement: Judgement, folder: Path) -> list[Path]:
    """Write every verdict table and figure of a report below `folder`, and return the files.

    CSV has the numbers in full; Markdown and LaTeX (booktabs) round as the report does.
    """
    written = []
    folder.mkdir(parents=True, exist_ok=True)
    writers: dict[str, Callable[[MetricTable], str]] = {"csv": as_csv, "md": as_markdown, "tex": as_latex}
    for table in judgement.tables:
        for suffix, text in writers.items():
            written.append(folder / f"{table.metric.replace('/', '-').replace('@', '-at-')}.{suffix}")
            write_atomically(written[-1], text(table))
    for name, picture in pictures(study, judgement).items():
        for suffix in FORMATS:
            written.append(folder / f"{name}.{suffix}")
            picture.save(written[-1])
    return written


def as_csv(table: MetricTable) -> str:
    """A row for each arm, numbers in full; empty where there is none."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(EXACT)
    for row in table.rows:
        known = vars(row) | (vars(row.effect) if row.effect else {}) | {"n": row.effect.n if row.effect else row.n}
        writer.writerow(["" if known.get(name) is None else known[name] for name in EXACT])
    return out.getvalue()


def as_markdown(table: MetricTable) -> str:
    """A table as the report shows it."""
    rows = [[cell.replace("|", "\\|") for cell in row] for row in _cells(table)]
    lines = [" | ".join(row) for row in (_head(table), ["---"] * len(SHOWN), *rows)]
    return "\n".join(f"| {line} |" for line in lines) + "\n"


def as_latex(table: MetricTable) -> str:
    """A tabular as the report shows it; needs the package booktabs."""
    body = [" & ".join(_escaped(cell) for cell in row) + r" \\" for row in _cells(table)]
    head = " & ".join(_escaped(cell) for cell in _head(table)) + r" \\"
    lines = [r"\begin{tabular}{lrrrrrl}", r"\toprule", head, r"\midrule", *body, r"\bottomrule", r"\end{tabular}"]
    return "\n".join(lines) + "\n"


def _head(table: MetricTable) -> list[str]:
    unit = f", {table.unit}" if table.unit else ""
    return [f"{table.label}{unit}", *SHOWN[1:]]


def _cells(table: MetricTable) -> Sequence[list[str]]:
    rows = []
    for row in table.rows:
        effect = row.effect
        measured = [signed(effect.estimate), f"[{signed(effect.low)}, {signed(effect.high)}]"] if effect else ["", ""]
        n = effect.n if effect else row.n
        rows.append([row.label, number(row.mean), *measured, pvalue(row.p_holm), str(n), row.verdict])
    return rows


def _escaped(text: str) -> str:
    return "".join(LATEX.get(character, character) for character in text)
