"""Promotion of configurations: asynchronous successive halving over training tokens (ASHA, arXiv 1810.05934).

Optuna's pruners stop a trial where it stands, at once or never. Here a configuration is paused at each rung and goes on
from its checkpoint once it is among the best 1 / ETA of those that reached the rung, whoever came first.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from core.records import run_record
from core.records.run_record import RunRecord, UnreadableRecordError
from core.runtime.units import ranked
from core.training.checkpoint_files import saved_step
from sweeps.studies.plan import PlannedRun

ETA = 3
MOST_RUNGS = 4


def rungs_of(steps: int, every: int) -> tuple[int, ...]:
    """The steps at which runs of `steps` are compared: fractions 1 / ETA^r, moved up to the next validation.

    every: steps between validations; 0 = only at the end. The last is `steps`.
    """
    found = [steps]
    while every and len(found) < MOST_RUNGS:
        step = -(-steps // (every * ETA ** len(found))) * every
        if step >= found[0]:
            break
        found.insert(0, step)
    return tuple(found)


def bracket_of(index: int, rungs: int) -> int:
    """Hyperband's bracket (JMLR 18:185) of the index-th configuration: it is compared first at the rung of that number.

    Brackets get configurations in proportion to Hyperband's n = ceil((s_max + 1) / (s + 1) ETA^s), s = s_max - bracket,
    each as soon as it is furthest behind its share.
    """
    weights = [-(-rungs * ETA ** (rungs - 1 - b) // (rungs - b)) for b in range(rungs)]
    given = [0] * rungs
    for n in range(index + 1):
        behind = [weight / sum(weights) * (n + 1) - count for weight, count in zip(weights, given, strict=True)]
        chosen = behind.index(max(behind))
        given[chosen] += 1
    return chosen


def expected_steps(trials: int, rungs: Sequence[int], *, hyperband: bool = False) -> float:
    """Training steps of a whole search, for one seed of each configuration, if the best 1 / ETA go on at every rung.

    hyperband: the configurations are dealt out to brackets, each of which begins at another rung.
    """
    dealt = Counter(bracket_of(index, len(rungs)) if hyperband else 0 for index in range(trials))
    total = 0
    for bracket, many in dealt.items():
        steps = [rungs[bracket], *(b - a for a, b in zip(rungs[bracket:], rungs[bracket + 1 :], strict=False))]
        total += sum(max(1, many // ETA**place) * more for place, more in enumerate(steps))
    return float(total)


def promotable(reached: Mapping[int, Mapping[int, float]], waiting: Mapping[int, int], *, last: bool) -> int | None:
    """The configuration that should train on, or None.

    reached: values (smaller = better) by configuration, for each rung below the final one. waiting: of those that are
    paused, the rung at which. Higher rungs come first. last: nothing more will come, so that at least one of each rung
    goes on: whatever the budget, something is trained to the end.
    """
    for rung in sorted(reached, reverse=True):
        values = reached[rung]
        places = max(len(values) // ETA, 1 if last and values else 0)
        numbers = sorted(values)
        for number in (numbers[place] for place in ranked([values[number] for number in numbers])[:places]):
            if waiting.get(number) == rung:
                return number
    return None


def paused_record(folder: Path, run: PlannedRun) -> RunRecord | None:
    """The record of a run that was paused and can go on; None where there is none of this config and data."""
    try:
        record = run_record.read(folder / run_record.FILE_NAME)
    except (FileNotFoundError, UnreadableRecordError):
        return None
    same = record.run_hash == run.run_hash and record.data_fingerprint == run.fingerprint
    return record if same and record.status == "paused" and saved_step(folder) is not None else None


def metrics_at(record: RunRecord, step: int | None) -> dict[str, float] | None:
    """The metrics of a record's validation at a step, however far the run has come since; None where there are none."""
    steps = record.validation.get("step", [])
    if step not in steps:
        return None
    place = steps.index(step)  # of a record that was tampered with a column may be short, or hold nothing there
    row = {name: column[place] for name, column in record.validation.items() if place < len(column)}
    return {name: value for name, value in row.items() if value is not None}
