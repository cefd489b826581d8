"""Progress of a run, by its progress file, and of the decoding of a study's finished runs."""

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.records import decoded
from core.records import record as records
from core.records.design import Design
from core.records.record import OutOfReachError, UnreadableRecordError
from core.records.run_folders import look
from core.runtime import json_files as jsonfiles
from core.runtime.json_files import DamagedFileError, are_numbers
from core.runtime.units import duration

PROGRESS_FILE = "progress.json"
LINE_S = 30.0  # between lines in a log that say how far a run is
CLOCK = "%H:%M:%S"


class Pace:
    """Time that a run will still take, by the steps since the first one that was told."""

    def __init__(self, steps: int) -> None:
        self._steps, self._first = steps, (0, 0.0)

    def left(self, step: int) -> str:
        """As the end of a line; empty where it can't be told yet."""
        now = time.monotonic()
        if self._first == (0, 0.0):
            self._first = (step, now)
        since, began = self._first
        return (
            f", about {duration((now - began) * (self._steps - step) / (step - since))} left"
            if since < step < self._steps
            else ""
        )


def read_progress(folder: Path) -> dict[str, Any] | None:
    """The newest progress of a run; None before its first row, and where what lies there is no progress."""
    try:
        content = jsonfiles.read(folder / PROGRESS_FILE, finite=False)  # a loss may not be
    except (FileNotFoundError, DamagedFileError):
        return None
    return content if isinstance(content, dict) and _is_whole(content) else None


def _is_whole(content: dict[str, Any]) -> bool:
    given = [content.get(name) for name in ("step", "steps", "started", "updated")]
    loss, curves = content.get("loss"), content.get("curves", {})
    return (
        {"step", "steps", "loss"} <= content.keys()
        and are_numbers(one for one in given if one is not None)
        and content["steps"] != 0
        and (loss is None or isinstance(loss, float | int))
        and isinstance(curves, dict)
        and all(map(_is_curve, curves.values()))
    )


def _is_curve(curve: Any) -> bool:
    steps, values = (curve.get(name) if isinstance(curve, dict) else None for name in ("step", "value"))
    if not isinstance(steps, list) or not isinstance(values, list):
        return False
    return len(steps) == len(values) and are_numbers(steps) and are_numbers(values)


@dataclass(frozen=True)
class Standing:
    """Ways of decoding of a study's finished runs: how many are wanted and answered, and which failed, by reason."""

    wanted: int
    answered: int
    failed: Mapping[str, int]


def standing(design: Design, folder: Path) -> Standing | None:
    """Progress of decoding a study's runs, by its folder; None for a design without decoders."""
    if design.decoders is None:
        return None
    total, answered, failed = 0, 0, Counter[str]()
    cells = {(arm.hash, seed) for arm in design.arms for seed in design.seeds}
    for path in look(folder).records:
        try:
            record = records.read(path)
        except (FileNotFoundError, UnreadableRecordError, OutOfReachError):
            continue  # whoever reads the records says so
        if record.status != "complete" or (record.arm_hash, record.seed) not in cells:
            continue
        have, weights = decoded.read_all(path.parent), record.provenance.get("weights_sha256") or ""
        for way in decoded.wanted(design.decoders, weights, causal=bool(record.config["model"].get("causal"))):
            total += 1
            if (one := have.get(way.decoder)) is not None and one.is_of(way):
                answered += one.reason is None
                failed.update([one.reason] if one.reason is not None else [])
    return Standing(total, answered, dict(failed))
