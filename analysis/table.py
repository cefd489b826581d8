"""Table: one table of an answer, declared once and written to a terminal, a page and files.

The writers are `analysis.report.terminal`, `analysis/report/page/macros.html.jinja` and `analysis.report.files`.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any, Literal

Medium = Literal["page", "terminal", "file"]
EVERYWHERE: tuple[Medium, ...] = ("page", "terminal", "file")


@dataclass(frozen=True)
class Range:
    """An interval's cell: `low … high` on a page, `low high` on a terminal, `[low, high]` in a file. Empty ends: no text."""

    low: str = ""
    high: str = ""

    def text(self, medium: Medium) -> str:
        """The interval as the medium writes it."""
        if not self.low:
            return ""
        return {"page": f"{self.low} … {self.high}", "terminal": f"{self.low} {self.high}"}.get(
            medium, f"[{self.low}, {self.high}]"
        )


@dataclass(frozen=True)
class Prose:
    """A cell of words. tone: CSS class and terminal colour ("better", "worse" ...); notes: shown below it on a page."""

    words: str
    tone: str = ""
    notes: tuple[str, ...] = ()


Cell = str | Range | Prose


@dataclass(frozen=True)
class Column:
    """A column. on: the media that show it; terminal, file: its heading there where that differs; prose: its cells are words,
    which are set to the left and may be broken over lines."""

    head: str
    on: tuple[Medium, ...] = EVERYWHERE
    prose: bool = False
    terminal: str = ""
    file: str = ""

    def heading(self, medium: Medium) -> str:
        """The column's heading as the medium writes it."""
        return {"terminal": self.terminal, "file": self.file}.get(medium) or self.head


@dataclass(frozen=True)
class Table:
    """A table of an answer.

    name: of its files. rows: cells by column, rounded for readers; exact: numbers in full, a mapping for each row of the CSV
    file. hidden: places of rows that a medium leaves out. on: the media that show the table at all.
    On a page: place, the part that it stands in; title, its heading (empty: none); label, its name for screen readers
    (default: the title); intro and caption, paragraphs above and below; style, a CSS class; fold, the heading of a fold that
    hides it at first. On a terminal: terminal, the line above it (default: the title); below, lines below it.
    """

    name: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    exact: tuple[Mapping[str, Any], ...] = ()
    title: str = ""
    place: str = "tests"
    label: str = ""
    intro: str = ""
    caption: str = ""
    style: str = ""
    fold: str = ""
    terminal: str = ""
    below: tuple[str, ...] = ()
    hidden: Mapping[Medium, Collection[int]] = field(default_factory=dict)
    on: tuple[Medium, ...] = EVERYWHERE

    def shown_columns(self, medium: Medium) -> list[Column]:
        """The columns that a medium shows."""
        return [column for column in self.columns if medium in column.on]

    def head(self, medium: Medium) -> list[str]:
        """The headings of the columns that a medium shows."""
        return [column.heading(medium) for column in self.shown_columns(medium)]

    def shown(self, medium: Medium) -> list[list[Cell]]:
        """The rows that a medium shows, each with the cells of the columns that it shows."""
        return [
            [cell for cell, column in zip(row, self.columns, strict=True) if medium in column.on]
            for place, row in enumerate(self.rows)
            if place not in self.hidden.get(medium, ())
        ]

    def texts(self, medium: Medium) -> list[list[str]]:
        """The rows that a medium shows as plain text."""
        return [[text(cell, medium) for cell in row] for row in self.shown(medium)]

    def _repr_html_(self) -> str:
        """The table in a notebook; every text is escaped."""
        rows = [("th", self.head("page")), *(("td", row) for row in self.texts("page"))]
        lines = ("".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) for tag, cells in rows)
        return f"<h4>{escape(self.title)}</h4><table>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"


def text(cell: Cell, medium: Medium) -> str:
    """A cell as plain text."""
    if isinstance(cell, Range):
        return cell.text(medium)
    return cell.words if isinstance(cell, Prose) else cell


def tables_on(tables: Sequence[Table], medium: Medium) -> list[Table]:
    """The tables that a medium shows."""
    return [table for table in tables if medium in table.on]
