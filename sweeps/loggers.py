"""How far a run is, told to whoever watches it."""

import json
import logging
import time
from pathlib import Path

from core.patience import no_space
from core.records import write_atomically
from sweeps.progress import PROGRESS_FILE, read_progress

__all__ = ["ProgressLogger", "read_progress"]

INTERVAL_S = 1.0

log = logging.getLogger(__name__)


class ProgressLogger:
    """Keeps a run's progress.json: {"step", "steps", "loss", "started", "updated"}, times in seconds of the epoch.

    Written atomically, and at most once a second.
    """

    def __init__(self, folder: Path, steps: int) -> None:
        self._path, self._steps = folder / PROGRESS_FILE, steps
        self._started, self._written = time.time(), 0.0
        self._loss: float | None = None

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Note the newest training loss; "train/nelbo" goes before "train/loss", which has the auxiliary losses."""
        loss = metrics.get("train/nelbo", metrics.get("train/loss", metrics.get("loss")))
        self._loss = self._loss if loss is None else float(loss)
        now = time.time()
        if now - self._written >= INTERVAL_S:
            self._written = now
            row = {"step": step, "steps": self._steps, "loss": self._loss, "started": self._started, "updated": now}
            try:
                write_atomically(self._path, json.dumps(row) + "\n")
            except OSError as error:  # a run needs nobody who watches it
                if (reason := no_space(error)) is None:
                    raise
                log.warning("progress isn't shown at the moment: %s", reason)
