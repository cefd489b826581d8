"""Tables for terminals whose rows have names: nothing of a name is cut, however narrow the terminal is."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from core.terminal import line

GAP, INDENT = 2, 2
LEAST = 16  # columns of width that a cell needs which may be folded


@dataclass(frozen=True)
class Column:
    """A column beside the names. folds: its cells may take several lines; only the last one's may."""

    name: str = ""
    justify: str = "right"
    folds: bool = False


class Labelled:
    """A table with names in its first column where they fit beside the cells, else on lines of their own above them.

    Widths are in terminal cells. head: the name of the names; None leaves the line of headings out.
    """

    def __init__(self, head: str | None, columns: Sequence[Column]) -> None:
        self.head, self.columns = head, tuple(columns)
        self.rows: list[tuple[Text, tuple[RenderableType, ...]]] = []

    def add(self, label: str | Text, *cells: RenderableType) -> None:
        """One row."""
        self.rows.append((line(label) if isinstance(label, str) else label, cells))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The table in the width that there is."""
        widths = self._widths(console, options)
        labels = max((label.cell_len for label, _ in self.rows), default=0)
        labels = max(labels, len(self.head or ""))
        fixed = sum(width + GAP for column, width in zip(self.columns, widths, strict=True) if not column.folds)
        folding = [min(width, LEAST) + GAP for column, width in zip(self.columns, widths, strict=True) if column.folds]
        beside = labels + fixed + sum(folding) <= options.max_width
        first = labels if beside else max(INDENT, len(self.head or ""))
        left = options.max_width - first - fixed - GAP
        widths = [min(w, max(left, LEAST)) if c.folds else w for c, w in zip(self.columns, widths, strict=True)]
        if self.head is not None:
            titles = [line(column.name, "bold") for column in self.columns]
            yield self._line(first, widths, Text(self.head, style="bold"), titles)
        for label, cells in self.rows:
            if beside:
                yield self._line(first, widths, label, cells)
            else:
                yield label
                yield self._line(first, widths, Text(), cells)

    def _widths(self, console: Console, options: ConsoleOptions) -> list[int]:
        measured = [
            [Measurement.get(console, options, row[n]).maximum for _, row in self.rows]
            for n in range(len(self.columns))
        ]
        return [max([*found, len(column.name)]) for column, found in zip(self.columns, measured, strict=True)]

    def _line(self, first: int, widths: Sequence[int], label: Text, cells: Sequence[RenderableType]) -> Table:
        table = Table.grid(padding=(0, GAP, 0, 0), pad_edge=False)
        table.add_column(width=first, no_wrap=True)
        for column, width in zip(self.columns, widths, strict=True):
            table.add_column(
                width=width, justify="right" if column.justify == "right" else "left",
                no_wrap=not column.folds, overflow="fold",
            )  # fmt: skip
        table.add_row(label, *cells)
        return table
