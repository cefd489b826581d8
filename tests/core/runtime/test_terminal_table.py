import io

import pytest
from rich.console import Console
from rich.progress_bar import ProgressBar
from rich.text import Text

from core.runtime.terminal_table import Column, Labelled
from core.runtime.units import duration

LONG = [f"objective.load_balancing_weight={n}, objective.z_loss_weight=0.001" for n in range(9)]
COLUMNS = (Column("mean"), Column("95 % interval"), Column("verdict", justify="left", folds=True))


def shown(table: Labelled, width: int) -> list[str]:
    console = Console(file=io.StringIO(), width=width)
    console.print(table)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def table(labels: list[str]) -> Labelled:
    made = Labelled("arm", COLUMNS)
    for label in labels:
        made.add(label, "2.615", "−0.0073 +0.0112", Text("no detectable difference at this resolution"))
    return made


def test_names_that_fit_are_beside_their_cells() -> None:
    assert shown(table(["a", "bc"]), 80) == [
        "arm   mean    95 % interval  verdict",
        "a    2.615  −0.0073 +0.0112  no detectable difference at this resolution",
        "bc   2.615  −0.0073 +0.0112  no detectable difference at this resolution",
    ]


@pytest.mark.parametrize("width", [72, 80, 100])
def test_long_names_are_whole_above_their_cells(width: int) -> None:
    lines = shown(table(LONG), width)
    assert max(map(len, lines)) <= width
    assert [line for line in lines if line in LONG] == LONG
    first = lines[lines.index(LONG[0]) + 1]
    assert first.startswith("     2.615  −0.0073 +0.0112  no detectable") and "verdict" in lines[0]
    assert lines[0].index("verdict") == first.index("no detectable")  # headings are above what they name
    assert lines[0].index("mean") + len("mean") == first.index("2.615") + len("2.615")


def test_a_bar_beside_a_name_that_is_too_long_goes_below_it() -> None:
    made = Labelled(None, (Column(justify="left"), Column(justify="left", folds=True)))
    made.add(LONG[0], ProgressBar(total=100, completed=50, width=24), "50/100  NELBO 4.321")
    made.add("short", Text("starting"), "")
    assert shown(made, 80) == [LONG[0], f"    {'━' * 12}              50/100  NELBO 4.321", "short", "    starting"]


def test_an_empty_table_is_nothing() -> None:
    assert shown(Labelled(None, COLUMNS), 80) == []


def test_lengths_of_time_are_in_units_that_suit_them() -> None:
    assert [duration(s) for s in (3, 600, 9000, 2584404)] == ["3 s", "10 min", "2.5 h", "29.9 days"]
