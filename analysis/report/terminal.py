"""The report on a terminal of 80 columns: headline and tables."""

from typing import Any

from rich.console import Group
from rich.text import Text

from analysis.table import Cell, Prose, Table, tables_on, text
from analysis.verdicts.answer import Judgement
from core.runtime.terminal import line
from core.runtime.terminal_table import Column, Labelled

STYLES = {"better": "green", "worse": "red", "equivalent": "blue"}


def terminal_table(judgement: Judgement, *, titled: bool = True) -> Group:
    """Headline and tables for a terminal of 80 columns. titled: below the question."""
    title = [line(judgement.question, style="bold")] if titled else []
    parts: list[Any] = [*title, line(judgement.headline), Text()]
    for table in tables_on(judgement.tables, "terminal"):
        parts += table_lines(table)
    counts = judgement.counts
    parts.append(line(f"runs: {counts['complete']} complete, {counts['failed']} failed, {counts['missing']} missing"))
    parts += [line(f"set aside: {n} {reason}") for reason, n in judgement.study.set_aside.items()]
    parts += [line(f"unreadable: {each}", style="red") for each in judgement.study.unreadable]
    notes = {
        f"{row.label}: {note}": None for table in judgement.comparisons for row in table.rows for note in row.notes
    }
    parts += [line(f"note: {note}") for note in (*notes, *judgement.notes)]
    parts += [line(judgement.declared, style="dim")] if judgement.declared else []
    return Group(*parts)


def table_lines(table: Table) -> list[Any]:
    """A table below its heading, with the lines below it."""
    heading = table.terminal or table.title
    parts: list[Any] = [line(heading, style="dim")] if heading else []
    if table.columns:
        first, *others = table.shown_columns("terminal")
        shown = [Column(each.heading("terminal"), "left" if each.prose else "right", each.prose) for each in others]
        out = Labelled(first.heading("terminal"), shown)
        for label, *cells in table.shown("terminal"):
            out.add(text(label, "terminal"), *map(_cell, cells))
        parts.append(out)
    return [*parts, *(line(each, style="dim") for each in table.below), Text()]


def _cell(cell: Cell) -> Text:
    return line(text(cell, "terminal"), style=STYLES.get(cell.tone, "") if isinstance(cell, Prose) else "")
