"""Tables for terminals whose rows have names: nothing of a name or a number is cut, however narrow the terminal is."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from core.runtime.terminal import line

GAP, INDENT = 2, 2
LEAST = 16  # columns of width that a cell needs which may be folded, unless it has a longer word


@dataclass(frozen=True)
class Column:
    """A column beside the names. folds: its cells may take several lines, broken between words."""

    name: str = ""
    justify: str = "right"
    folds: bool = False


class Labelled:
    """A table with names in its first column where they fit beside the cells, else on lines of their own above them.

    Where the cells don't fit beside one another either, each is on a line of its own, after its column's name. head: the name
    of the names; None leaves the line of headings out. Widths are in terminal cells.
    """

    def __init__(self, head: str | None, columns: Sequence[Column]) -> None:
        self.head, self.columns = head, tuple(columns)
        self.rows: list[tuple[Text, tuple[RenderableType, ...]]] = []

    def add(self, label: str | Text, *cells: RenderableType) -> None:
        """One row."""
        shown = tuple(line(cell) if isinstance(cell, str) else cell for cell in cells)
        self.rows.append((line(label) if isinstance(label, str) else label, shown))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if not self.rows:
            if self.head is not None and any(column.name for column in self.columns):
                widths = [len(column.name) for column in self.columns]
                yield from self._headings(len(self.head), widths, options.max_width)
            return
        widths, least = self._widths(console, options)
        names = max(max(label.cell_len for label, _ in self.rows), len(self.head or ""))
        needed = sum(least) + GAP * len(least)
        beside = names + needed <= options.max_width
        first = names if beside else max(INDENT, len(self.head or ""))
        if first + needed > options.max_width:
            yield from self._stacked()
            return
        left = options.max_width - first - needed
        for place, (width, fewest) in enumerate(zip(widths, least, strict=True)):
            more = min(width - fewest, left)
            widths[place], left = fewest + more, left - more
        yield from self._headings(first, widths, options.max_width)
        for label, cells in self.rows:
            if not beside and label.plain:
                yield label
            yield self._line(first, widths, label if beside else Text(), cells)

    def _widths(self, console: Console, options: ConsoleOptions) -> tuple[list[int], list[int]]:
        """Of each column: the width in which nothing of it is folded, and the least that it can have."""
        widths, least = [], []
        for place, column in enumerate(self.columns):
            cells = [Measurement.get(console, options.update(width=10_000), row[place]) for _, row in self.rows]
            widths.append(max(*(cell.maximum for cell in cells), len(column.name)))
            word = max(*(cell.minimum for cell in cells), len(column.name))
            least.append(min(widths[-1], max(word, LEAST)) if column.folds else widths[-1])
        return widths, least

    def _headings(self, first: int, widths: Sequence[int], most: int) -> Iterator[RenderableType]:
        if self.head is not None and first + sum(widths) + GAP * len(widths) <= most:
            titles = [line(column.name, "bold") for column in self.columns]
            yield self._line(first, widths, Text(self.head, style="bold"), titles)

    def _stacked(self) -> Iterator[RenderableType]:
        for label, cells in self.rows:
            if label.plain:
                yield label
            for column, cell in zip(self.columns, cells, strict=True):
                name = Text(f"{' ' * INDENT}{column.name}{': ' if column.name else ''}")
                if isinstance(cell, Text):
                    yield from [name + cell] if cell.plain else []
                    continue
                grid = Table.grid()
                grid.add_row(name, cell)
                yield grid

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


def labelled(head: str, *names: str, left: Collection[str] = (), folded: Collection[str] = ()) -> Labelled:
    """A table with these columns of numbers beside the names. left: those of text; folded: of text in several lines."""
    return Labelled(
        head,
        [Column(name, "left" if name in left or name in folded else "right", folds=name in folded) for name in names],
    )
