"""Progress of a run, by its progress file, and of decoding a study's finished runs."""

import json
import logging
import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.records import decoded, run_record
from core.records.designs import Design, StudyDesign
from core.records.metrics import metrics_in
from core.records.run_folders import list_runs
from core.records.run_record import OutOfReachError, UnreadableRecordError, write_atomically
from core.runtime import json_files
from core.runtime.json_files import DamagedFileError, are_numbers
from core.runtime.retry import no_space
from core.runtime.units import duration

PROGRESS_FILE = "progress.json"
LINE_S = 30.0  # between lines in a log that say how far a run is
CLOCK = "%H:%M:%S"
INTERVAL_S = 1.0
MOST_POINTS = 128

log = logging.getLogger(__name__)


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


class ProgressLogger:
    """Keeps a run's progress.json: {"step", "steps", "loss", "started", "updated", "tokens_per_step", "curves"}, times in
    seconds of the epoch.

    curves: of each metric to keep, {"step": [T], "value": [T]}, thinned to at most MOST_POINTS; a run that goes on from a
    checkpoint goes on with them. Written atomically, and at most once a second. Each half minute a line goes to the log.
    """

    def __init__(
        self, folder: Path, steps: int, *, tokens_per_step: float | None = None, keep: Sequence[str] = ()
    ) -> None:
        self._path, self._steps, self._tokens = folder / PROGRESS_FILE, steps, tokens_per_step
        self._started, self._written, self._logged = time.time(), 0.0, time.time()
        self._pace = Pace(steps)
        self._loss: float | None = None
        before = (read_progress(folder) or {}).get("curves", {}) if keep else {}
        self._curves: dict[str, dict[str, list[float]]] = {
            name: before.get(name, {"step": [], "value": []}) for name in keep
        }

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Note the newest training loss; "train/nelbo" goes before "train/loss", which has the auxiliary losses."""
        loss = metrics.get("train/nelbo", metrics.get("train/loss", metrics.get("loss")))
        self._loss = self._loss if loss is None else float(loss)
        for name, curve in self._curves.items():
            if name in metrics and step is not None and math.isfinite(metrics[name]):
                _append(curve, step, float(metrics[name]))
        now = time.time()
        if step is not None:
            left = self._pace.left(step)
            if now - self._logged >= LINE_S:
                self._logged = now
                so_far = "" if self._loss is None else f", NELBO {self._loss:.3f}"
                log.info("step %d of %d%s%s", step, self._steps, so_far, left)
        if now - self._written >= INTERVAL_S:
            self._written = now
            row: dict[str, Any] = {"step": step, "steps": self._steps, "loss": self._loss}
            row |= {"started": self._started, "updated": now}
            row |= {"tokens_per_step": self._tokens, "curves": self._curves}
            try:
                write_atomically(self._path, json.dumps(row) + "\n")
            except OSError as error:  # a run needs nobody who watches it
                if (reason := no_space(error)) is None:
                    raise
                log.warning("progress isn't shown at the moment: %s", reason)


def curve_metrics(design: StudyDesign) -> tuple[str, ...]:
    """Metrics whose curves are shown while a run trains: the training loss, the design's own, those that ask for a chart."""
    return tuple(dict.fromkeys(("train/nelbo", design.primary, *design.secondary, *metrics_in("chart"))))


def _append(curve: dict[str, list[float]], step: int, value: float) -> None:
    """Add a point in place of whatever was noted for this step or later ones, before the run was stopped."""
    steps, values = curve["step"], curve["value"]
    while steps and steps[-1] >= step:
        steps.pop()
        values.pop()
    if len(steps) >= MOST_POINTS:  # every second one, the newest of them included
        steps[:], values[:] = steps[1::2], values[1::2]
    steps.append(step)
    values.append(value)


def read_progress(folder: Path) -> dict[str, Any] | None:
    """The newest progress of a run; None before its first row, and where what lies there is no progress."""
    try:
        content = json_files.read(folder / PROGRESS_FILE, finite=False)  # a loss may not be
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
class DecodingProgress:
    """Ways of decoding of a study's finished runs: how many are wanted and answered, and which failed, by reason."""

    wanted: int
    answered: int
    failed: Mapping[str, int]


def decoding_progress(design: Design, folder: Path) -> DecodingProgress | None:
    """Progress of decoding a study's runs, by its folder; None for a design without decoders."""
    if design.decoders is None:
        return None
    found: list[decoded.Decoded | None] = []
    hashes = {arm.hash for arm in design.arms}
    for path in list_runs(folder).records:
        try:
            record = run_record.read(path)
        except (FileNotFoundError, UnreadableRecordError, OutOfReachError):
            continue  # whoever reads the records says so
        if record.status == "complete" and record.arm_hash in hashes and record.seed in design.seeds:
            found += [one for _, one in decoded.responses(design.decoders, record, path.parent)]
    reasons = [one.reason for one in found if one is not None]
    failed = Counter(reason for reason in reasons if reason is not None)
    return DecodingProgress(len(found), reasons.count(None), dict(failed))
