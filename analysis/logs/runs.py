"""Runs in the rows of a log: an arm, a seed, and values by step. What is ambiguous is refused, not guessed."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from core.errors import UserError
from core.records.log_rows import Log, LogRow
from core.registry import nearest
from core.runtime.units import NUMERAL

FINISHED = {"complete", "completed", "finished", "success", "succeeded", "ok", "done"}
NOT_A_NUMBER = {"nan": math.nan, "inf": math.inf, "+inf": math.inf, "-inf": -math.inf, "infinity": math.inf}
EMPTY = {"", "na", "n/a", "null", "none"}


@dataclass(frozen=True)
class Columns:
    """Columns of a log. wide: the arms' own columns, each of values of the one metric; else `arm` names the arm of a row.

    step: counts steps; without it a run has one row. status: says whether a run was finished.
    """

    metrics: tuple[str, ...]
    seed: str
    arm: str | None = None
    wide: tuple[str, ...] = ()
    step: str | None = None
    status: str | None = None


@dataclass
class LoggedRun:
    """One run. values: of each metric by step (0 without steps). settings: its other columns that never change."""

    arm: str
    seed: int
    place: str
    values: dict[str, dict[float, float]] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    trouble: str = ""

    def last(self, metric: str) -> float | None:
        """The last step that has the metric."""
        return max(self.values.get(metric, {}), default=None)


def runs_of(log: Log, columns: Columns) -> list[LoggedRun]:
    """The runs of a log, in the order in which they first appear.

    Raises UserError, naming the row, for a column that isn't there, a seed or a value that can't be read, and two rows that
    say different things of one run and step.
    """
    _check_columns(log, columns)
    runs: dict[tuple[str, int], LoggedRun] = {}
    rows = [row for each in log.rows for row in _long(each, columns)]
    changing: dict[tuple[str, int], set[str]] = {}
    for row in rows:
        arm, seed = _text(row, "arm"), _seed(row, columns.seed)
        run = runs.setdefault((arm, seed), LoggedRun(arm, seed, row.place))
        step = _step(row, columns.step)
        for metric in columns.metrics:
            _add(run, row, metric, step, columns)
        _add_settings(run, row, changing.setdefault((arm, seed), set()), columns)
        if columns.status is not None:
            said = str(row.values.get(columns.status))
            run.trouble = "" if said.lower() in FINISHED else f"its {columns.status} is {said}"
    for run in runs.values():
        run.trouble = run.trouble or _trouble(run, columns)
    return list(runs.values())


def _check_columns(log: Log, columns: Columns) -> None:
    there = dict.fromkeys(name for row in log.rows for name in row.values)
    options: dict[str, Sequence[str | None]] = {
        "--seed": [columns.seed], "--arm": [columns.arm], "--arms": columns.wide, "--step": [columns.step]
    }  # fmt: skip
    options |= {"--status": [columns.status], "--metric": () if columns.wide else columns.metrics}
    for option, names in options.items():
        for name in names:
            if name is not None and name not in there:
                raise UserError(f"{option}: {log.source} has no column '{name}': {nearest(name, there)}")


def _long(row: LogRow, columns: Columns) -> Iterable[LogRow]:
    """A row with its arm and metrics by name: of a wide row, one for each arm's column."""
    if not columns.wide:
        assert columns.arm is not None
        return [LogRow(row.place, {**row.values, "arm": row.values.get(columns.arm)})]
    rest = {name: value for name, value in row.values.items() if name not in columns.wide}
    return [LogRow(row.place, {**rest, "arm": arm, columns.metrics[0]: row.values.get(arm)}) for arm in columns.wide]


def _add(run: LoggedRun, row: LogRow, metric: str, step: float, columns: Columns) -> None:
    value = number(row, metric)
    values = run.values.setdefault(metric, {})
    if value is None:
        return
    if step in values and not _same(values[step], value):
        what = f"{run.arm}, seed {run.seed}" + (f", step {step:g}" if columns.step else "")
        hint = "keep one" if columns.step else "name the column of steps by --step if this is a curve, or keep one"
        raise UserError(f"{row.place}: {what} has {metric}={value:g}, and {values[step]:g} before: {hint}")
    if step in values and columns.step is None:
        raise UserError(
            f"{row.place}: {run.arm}, seed {run.seed} comes twice (first: {run.place}): keep one, or name the column of "
            "steps by --step if this is a curve"
        )
    values[step] = value


def _same(one: float, two: float) -> bool:
    return one == two or (math.isnan(one) and math.isnan(two))


def _add_settings(run: LoggedRun, row: LogRow, changing: set[str], columns: Columns) -> None:
    """Keep the run's other columns as long as they don't change."""
    used = {columns.seed, columns.arm, columns.step, columns.status, "arm", *columns.metrics}
    for name, value in row.values.items():
        if name in used or name in changing or value is None or isinstance(value, list | dict):
            continue
        if run.settings.setdefault(name, value) != value:
            changing.add(name)
            del run.settings[name]


def _trouble(run: LoggedRun, columns: Columns) -> str:
    """Reason why a run can't be judged by its first metric; empty if it can."""
    metric = columns.metrics[0]
    last = run.last(metric)
    if last is None:
        return f"it has no {metric}"
    if not math.isfinite(run.values[metric][last]):
        return f"its {metric} is {run.values[metric][last]:g}" + (
            f" at its last step, {last:g}" if columns.step else ""
        )
    return ""


def number(row: LogRow, name: str) -> float | None:
    """The number in a column, NaN and infinities included; None where it is empty. Raises UserError for other text."""
    value = row.values.get(name)
    if value is None or isinstance(value, int | float):
        return None if value is None else float(value)
    words = str(value).strip()
    if words.lower() in EMPTY:
        return None
    if words.lower() in NOT_A_NUMBER:
        return NOT_A_NUMBER[words.lower()]
    if NUMERAL.fullmatch(words) is None:
        raise UserError(f"{row.place}: {name}={words[:40]!r} is no number")
    return float(words)


def _step(row: LogRow, name: str | None) -> float:
    if name is None:
        return 0.0
    value = number(row, name)
    if value is None or not math.isfinite(value):
        raise UserError(f"{row.place}: the step ({name}) is missing")
    return value


def _seed(row: LogRow, name: str) -> int:
    words = str(row.values.get(name)).strip()
    value = number(row, name) if words.lower() not in EMPTY else None
    if value is None or not float(value).is_integer() or value < 0:
        raise UserError(
            f"{row.place}: {name}={words!r} is no seed: a whole number from 0 on is needed, as runs are paired by it"
        )
    return int(value)


def _text(row: LogRow, name: str) -> str:
    words = str(row.values.get(name) if row.values.get(name) is not None else "").strip()
    if not words:
        raise UserError(f"{row.place}: the arm is missing")
    return words


def cut_to(runs: Sequence[LoggedRun], metrics: Sequence[str], at: float | None, *, as_they_end: bool) -> list[str]:
    """Bring runs to one number of steps; returns notes on what was done.

    at: the step at which all are compared; a run without a value there is left out. as_they_end: compare whatever their
    steps. Raises UserError where finished runs end at different steps and neither was asked for.
    """
    ends = _ends(runs, metrics[0])
    if at is not None:
        if not any(at in run.values[metrics[0]] for run in runs):
            raise UserError(f"--at {at:g}: no run has {metrics[0]} at this step")
        for run in runs:
            if not run.trouble and at not in run.values[metrics[0]]:
                run.trouble = f"it has no {metrics[0]} at step {at:g}"
            run.values = {name: {s: v for s, v in values.items() if s <= at} for name, values in run.values.items()}
            run.trouble = run.trouble or (
                "" if math.isfinite(run.values[metrics[0]][at]) else f"its {metrics[0]} isn't finite at step {at:g}"
            )
        return (
            [f"Runs are compared at step {at:g}; some go on to step {max(ends):g}"]
            if max(ends, default=at) > at
            else []
        )
    if len(ends) < 2:
        return []
    said = "; ".join(f"step {end:g}: {_named(who)}" for end, who in sorted(ends.items()))
    if as_they_end:
        return [f"Runs have different budgets and are compared as they end ({said})"]
    common = max((s for s in _common(runs, metrics[0])), default=None)
    hint = (
        f"--at {common:g} compares all at a step that each has" if common is not None else "--at STEP compares at one"
    )
    raise UserError(f"runs end at different steps ({said}): {hint}; --at end compares them as they are")


def _ends(runs: Sequence[LoggedRun], metric: str) -> dict[float, list[LoggedRun]]:
    ends: dict[float, list[LoggedRun]] = {}
    for run in runs:
        last = run.last(metric)
        if not run.trouble and last is not None:
            ends.setdefault(last, []).append(run)
    return ends


def _common(runs: Sequence[LoggedRun], metric: str) -> set[float]:
    steps = [set(run.values[metric]) for run in runs if not run.trouble]
    return set.intersection(*steps) if steps else set()


def _named(runs: Sequence[LoggedRun], most: int = 3) -> str:
    arms: Mapping[str, list[int]] = {}
    for run in runs:
        arms.setdefault(run.arm, []).append(run.seed)  # type: ignore[attr-defined]
    parts = [
        f"{arm} (seed{'s' * (len(seeds) > 1)} {', '.join(map(str, sorted(seeds)))})" for arm, seeds in arms.items()
    ]
    return ", ".join(parts[:most]) + (f" and {len(parts) - most} arms more" if len(parts) > most else "")
