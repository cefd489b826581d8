"""Files for a paper: tables as CSV, Markdown and LaTeX, figures as SVG, PNG and PDF."""

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from analysis.figures.static import pictures
from analysis.report.data import curve_rows, run_rows
from analysis.table import Table, tables_on
from analysis.verdicts.answer import Judgement
from core.records.run_record import write_atomically

LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "−": "$-$", "<": "$<$", ">": "$>$", "|": "$|$",
}  # fmt: skip
FORMATS = ("svg", "png", "pdf")


def write_files(judgement: Judgement, folder: Path) -> list[Path]:
    """Write every table and figure of a report below `folder`, and return the files.

    CSV has the numbers in full; Markdown and LaTeX (booktabs) round as the report does. runs.csv has a row for each run,
    curves.csv one for each logged number (analysis.report.data).
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = [folder / "runs.csv", folder / "curves.csv"]
    write_atomically(written[0], _csv(run_rows(judgement.study)))
    write_atomically(written[1], _csv(list(curve_rows(judgement.study))))
    writers: dict[str, Callable[[Table], str]] = {"csv": as_csv, "md": as_markdown, "tex": as_latex}
    for table in tables_on(judgement.tables, "file"):
        for suffix, text in writers.items():
            written.append(folder / f"{table.name}.{suffix}")
            write_atomically(written[-1], text(table))
    for name, picture in pictures(judgement.figures).items():
        for suffix in FORMATS:
            written.append(folder / f"{name}.{suffix}")
            picture.save(written[-1])
    return written


def as_csv(table: Table) -> str:
    """A row for each comparison, numbers in full, with the columns of any; empty where there is none."""
    return _csv(table.exact, table.head("file"))


def _csv(rows: Sequence[Mapping[str, Any]], head: Sequence[str] = ()) -> str:
    """Rows under the keys of any, or under a head where there is none."""
    out = io.StringIO()
    columns = list(dict.fromkeys(name for row in rows for name in row)) or head
    writer = csv.DictWriter(out, columns, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({name: "" if value is None else value for name, value in row.items()})
    return out.getvalue()


def as_markdown(table: Table) -> str:
    """A table in Markdown, rounded as on the page."""
    head, rows = table.head("file"), table.texts("file")
    lines = [" | ".join(cell.replace("|", "\\|") for cell in row) for row in (head, ["---"] * len(head), *rows)]
    return "\n".join(f"| {line} |" for line in lines) + "\n"


def as_latex(table: Table) -> str:
    """A tabular for the package booktabs, rounded as on the page."""
    head, *body = (
        " & ".join(_escaped(cell) for cell in row) + r" \\" for row in (table.head("file"), *table.texts("file"))
    )
    columns = "l" + "".join("l" if column.prose else "r" for column in table.shown_columns("file")[1:])
    top, bottom = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule"], [r"\bottomrule", r"\end{tabular}"]
    return "\n".join([*top, head, r"\midrule", *body, *bottom]) + "\n"


def _escaped(text: str) -> str:
    return "".join(LATEX.get(character, character) for character in text)
