"""The weights at a run's best validation, kept beside its final ones: trainer.keep_best names the metric."""

import hashlib
import json
import math
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open

from core.config.run import RunConfig
from core.records import fencing
from core.runtime.lightning_import import lightning
from core.runtime.ranks import Ranks
from core.runtime.units import below
from core.training.callbacks import Recorder
from core.training.checkpoint_files import BEST, FOLDER, set_aside
from core.training.communication import from_all_ranks
from core.training.weights import content_of, save_weights


class DamagedError(ValueError):
    """The best weights aren't those that were kept."""


class Best(NamedTuple):
    """Best weights kept: the metric, its value, after which step it was, and the file's sha256."""

    metric: str
    value: float
    step: int
    weights_sha256: str


def read_best(folder: Path) -> Best | None:
    """Read the description of a folder's best weights; None if there are none.

    Raises DamagedError where the file can't be read, or holds other weights than its header says.
    """
    path = folder / BEST
    try:
        with safe_open(path, framework="pt") as weights:
            said = json.loads((weights.metadata() or {})["best"])
            held = {name: weights.get_tensor(name) for name in weights.keys()}  # noqa: SIM118  (no mapping)
        if said["content"] != content_of(held):
            raise ValueError("it isn't what was saved")
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        return Best(said["metric"], said["value"], said["step"], content)
    except FileNotFoundError:
        return None
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise DamagedError(str(error)) from None


class BestKeeper(lightning.Callback):
    """Saves the weights at each validation that improves the metric, which is minimised; the recorder has its values.

    The file says in its own header what it is, so that it can't be at odds with it: a run that goes on compares with what
    lies there, even where that is of a step after its checkpoint. A run that starts anew starts without.
    """

    def __init__(self, config: RunConfig, folder: Path, ranks: Ranks, recorder: Recorder) -> None:
        self.config, self.folder, self.ranks, self.recorder = config, folder, ranks, recorder
        self.best: Best | None = None
        self._seen = 0

    def begin(self, *, goes_on: bool) -> None:
        """Take up what lies in the folder, or delete it."""
        if self.config.trainer.keep_best is None or self.ranks.rank > 0:
            return
        try:
            best = read_best(self.folder) if goes_on else None
        except DamagedError as error:
            best = None
            set_aside(self.folder / FOLDER, BEST, f"{error}; what is best is kept from here on", self.folder)
        if not goes_on:
            fencing.remove(self.folder / BEST)
        self._take(best)

    def on_validation_end(self, trainer: lightning.Trainer, module: Any) -> None:
        self._consider(module)

    def on_train_end(self, trainer: lightning.Trainer, module: Any) -> None:
        self._consider(module)  # the last validation may be the recorder's own

    def _consider(self, module: Any) -> None:
        metric, validation = self.config.trainer.keep_best, self.recorder.validation
        if metric is None or not validation or validation["step"][-1] == self._seen:
            return
        self._seen = int(validation["step"][-1])
        value = validation[metric][-1]
        better = math.isfinite(value) and (self.best is None or below(value, self.best.value))
        if not from_all_ranks(better)[0]:  # rank 0 knows what lies in the folder; all save together
            return
        # One entry: the library writes several in an order of chance, and equal weights would have unequal hashes.
        said = {"metric": metric, "value": value, "step": self._seen}
        content = save_weights(
            module.denoiser,
            self.config,
            self.folder,
            self.ranks,
            BEST,
            lambda weights: {"best": json.dumps(said | {"content": content_of(weights)})},
        )
        if content is not None:
            self._take(Best(metric, value, self._seen, content))

    def _take(self, best: Best | None) -> None:
        self.best = best
        self.recorder.best = best._asdict() if best else {}
