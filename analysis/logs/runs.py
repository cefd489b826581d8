"""Runs in the rows of a log: an arm, a seed, and values by step. What is ambiguous is refused, not guessed."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from core.errors import UserError
from core.records.log_rows import Log, LogRow
from core.registry import nearest
from core.runtime.units import NUMERAL

FINISHED = {"complete", "completed", "finished", "success", "succeeded", "ok", "done"}
NOT_A_NUMBER = {"nan": math.nan, "inf": math.inf, "+inf": math.inf, "-inf": -math.inf, "infinity": math.inf}
ROLES = ("seed", "arm", "step", "status")
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
    changing: dict[tuple[str, int], set[str]] = {}
    states: dict[tuple[str, int], dict[float, str]] = {}
    for arm, row in (pair for each in log.rows for pair in _by_arm(each, columns)):
        seed, step = _seed(row, columns.seed), _step(row, columns.step)
        run = runs.setdefault((arm, seed), LoggedRun(arm, seed, row.place))
        for metric in columns.metrics:
            _add(run, row, metric, step, columns)
        _add_settings(run, row, changing.setdefault((arm, seed), set()), columns)
        if columns.status is not None and (state := _words(row, columns.status)):
            states.setdefault((arm, seed), {})[step] = state
    for cell, run in runs.items():
        own = states.get(cell, {})
        if columns.status is not None and (not own or own[max(own)].lower() not in FINISHED):
            run.trouble = f"its {columns.status} is {own[max(own)]}" if own else f"it has no {columns.status}"
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
    own = [columns.seed, columns.arm, columns.step, columns.status]
    for option, names in (("--metric", columns.metrics), ("--arms", columns.wide)):
        for name in names:
            if name in own:
                raise UserError(f"{option}: '{name}' is the column of the {ROLES[own.index(name)]}")
            if names.count(name) > 1:
                raise UserError(f"{option}: '{name}' is given twice")


def _by_arm(row: LogRow, columns: Columns) -> Iterable[tuple[str, LogRow]]:
    """A row's arm and the row: of a wide row, one for each arm's column. Raises UserError where the arm is missing."""
    if columns.wide:
        rest = {name: value for name, value in row.values.items() if name not in columns.wide}
        return [(arm, LogRow(row.place, {**rest, columns.metrics[0]: row.values.get(arm)})) for arm in columns.wide]
    assert columns.arm is not None
    if not (arm := _words(row, columns.arm)):
        raise UserError(f"{row.place}: the arm is missing")
    return [(arm, row)]


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
    used = {columns.seed, columns.arm, columns.step, columns.status, *columns.metrics}
    for name, value in row.values.items():
        if name in used or name in changing or value is None or isinstance(value, list | dict):
            continue
        if run.settings.setdefault(name, value) != value:
            changing.add(name)
            del run.settings[name]


def number(row: LogRow, name: str) -> float | None:
    """The number in a column, NaN and infinities included; None where it is empty. Raises UserError for other text."""
    value = row.values.get(name)
    if value is None:
        return None
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            raise UserError(f"{row.place}: {name} has {len(str(abs(value)))} digits") from None
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
    """The seed, to the last digit: a number of any size, written with or without leading zeros."""
    value, words = row.values.get(name), _words(row, name)
    if re.fullmatch(r"\d{1,40}", words) and not isinstance(value, bool):
        return int(words)
    if re.fullmatch(r"\d{1,15}\.0*", words):
        return int(float(words))
    raise UserError(
        f"{row.place}: {name}={words!r} is no seed: a whole number from 0 on is needed, as runs are paired by it"
    )


def _words(row: LogRow, name: str) -> str:
    """A value as text, without space around it; empty where there is none."""
    value = row.values.get(name)
    return "" if value is None else str(value).strip()


def cut_to(runs: Sequence[LoggedRun], metrics: Sequence[str], at: float | None, *, as_they_end: bool) -> list[str]:
    """Bring runs to one number of steps, and mark those that can't be judged; returns notes on what was done.

    at: the step at which all are compared; a run without a value there is left out. as_they_end: compare whatever their
    steps. Raises UserError where finished runs end at different steps and neither was asked for.
    """
    first, notes = metrics[0], list[str]()
    if at is not None:
        notes = _cut(runs, metrics, at)
    for run in runs:
        run.trouble = run.trouble or _trouble(run, first, at)
    for metric in metrics if at is None else ():
        ends = _ends(runs, metric)
        if len(ends) < 2:
            continue
        said = "; ".join(f"step {end:g}: {_named(who)}" for end, who in sorted(ends.items()))
        if as_they_end:
            notes.append(f"Runs have different budgets in {metric} and are compared as they end ({said})")
            continue
        common = max(_common(runs, metric), default=None)
        hint = "--at STEP" if common is None else f"--at {common:g}"
        raise UserError(
            f"runs end at different steps in {metric} ({said}): {hint} compares all at one step, --at end as they are"
        )
    return notes


def _cut(runs: Sequence[LoggedRun], metrics: Sequence[str], at: float) -> list[str]:
    """Leave out what comes after a step, and metrics that have no value at it."""
    if not any(at in run.values.get(metrics[0], {}) for run in runs):
        raise UserError(f"--at {at:g}: no run has {metrics[0]} at this step")
    beyond = max(step for run in runs for step in run.values.get(metrics[0], {}))
    for run in runs:
        for metric in metrics:
            values = run.values.get(metric, {})
            run.values[metric] = {step: value for step, value in values.items() if step <= at} if at in values else {}
    return [f"Runs are compared at step {at:g}; some go on to step {beyond:g}"] if beyond > at else []


def _trouble(run: LoggedRun, metric: str, at: float | None) -> str:
    """Reason why a run can't be judged by its first metric; empty if it can."""
    last = run.last(metric)
    where = "" if last in (None, 0.0) else f" at its last step, {last:g}" if at is None else f" at step {at:g}"
    if last is None:
        return f"it has no {metric}" + ("" if at is None else f" at step {at:g}")
    value = run.values[metric][last]
    return "" if math.isfinite(value) else f"its {metric} is {value:g}{where}"


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
