"""Callbacks that save on the way: checkpoints, and the weights at the best validation.

A checkpoint is saved whole or not at all, and the last two are kept (core.training.checkpoint_files finds them again). The
best weights lie beside a run's final ones: trainer.keep_best names the metric.
"""

import json
import logging
import math
import signal
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from torch import Tensor

from core.config.run import RunConfig
from core.data.inputs import learned_from
from core.errors import UserError
from core.records import fencing
from core.runtime.lightning_import import lightning
from core.runtime.paths import file_sha256
from core.runtime.ranks import Ranks
from core.runtime.retry import no_space
from core.runtime.units import below
from core.training import preemption
from core.training.callbacks import Recorder
from core.training.checkpoint_files import BEST, FOLDER, SINGLE, discard, keep, layout, note, set_aside
from core.training.communication import from_all_ranks
from core.training.preemption import TrainingPausedError
from core.training.seals import KEY_VARIABLE, Digest, own_key
from core.training.weights import content_of, save_weights

log = logging.getLogger(__name__)


class StepReachedError(Exception):
    """The step was reached after which training was to pause; its checkpoint is whole."""


class Checkpointer(lightning.Callback):
    """Saves every `trainer.checkpoint_every` steps, between the validation of a step and the next step.

    Older ones but one are deleted once the new one is complete on every rank, sealed and named in latest.json. None is saved
    where no key can be kept to sign it with. Asked to pause (core.training.preemption), it saves after the step under way and
    raises TrainingPausedError; after the step `pause_after` it saves too, and raises StepReachedError.
    """

    def __init__(self, config: RunConfig, folder: Path, ranks: Ranks, pause_after: int | None = None) -> None:
        self.config, self.folder, self.ranks, self.pause_after = config, folder / FOLDER, ranks, pause_after
        self.saved, self._learned_from = 0, learned_from(config)  # as it is now: files may change on the way
        self._without: str | None = None  # why no checkpoint can be sealed
        self._told = False
        self._votes: Any = None
        self._handler = signal.getsignal(signal.SIGTERM)

    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        if self.ranks.size > 1:  # on the host, so that no step waits for a GPU
            self._votes = dist.new_group(backend="gloo")
        if callable(self._handler) and threading.current_thread() is threading.main_thread():
            # Lightning's own ends the fit before a checkpoint can be saved.
            signal.signal(signal.SIGTERM, self._handler)
        self._without = from_all_ranks(self._no_key())[0]

    def _no_key(self) -> str | None:
        try:
            if self.ranks.rank == 0:
                own_key()
        except (OSError, UserError) as error:
            reason = f"{error.strerror}: {error.filename}" if isinstance(error, OSError) else str(error)
            return f"no key to sign it with can be kept ({reason}; {KEY_VARIABLE} names another)"
        return None

    def on_train_batch_start(self, trainer: lightning.Trainer, module: Any, batch: Any, batch_idx: int) -> None:
        every, step = self.config.trainer.checkpoint_every, trainer.global_step
        if batch_idx % self.config.trainer.accumulate:
            return
        asked, reached = self._pause(), self.pause_after is not None and step >= self.pause_after
        if step and step != self.saved and (asked or reached or (every and step % every == 0)):
            self._try_to_save(trainer, step)
        if asked:
            raise TrainingPausedError
        if reached:
            raise StepReachedError(f"paused after step {step} of {self.config.trainer.steps}")

    def _pause(self) -> bool:
        """True if any rank was asked to pause: all of them have to save the same step."""
        if self._votes is None:
            return preemption.requested()
        vote = torch.tensor([int(preemption.requested())])
        dist.all_reduce(vote, group=self._votes)
        return bool(vote)

    def _try_to_save(self, trainer: lightning.Trainer, step: int) -> None:
        fencing.check(self.folder)
        self.saved = step  # the checkpoint says so too
        if self._without is not None:
            if self.ranks.rank == 0 and not self._told:
                note(self.folder, f"no checkpoint from step {step} on: {self._without}")
            self._told = True
            return
        try:
            self._save(trainer, f"step-{step}", step)
        except Exception as error:
            # Ranks save together: what one of them can't do, the others don't go on without.
            if self.ranks.size > 1 or (reason := no_space(error)) is None:
                raise
            log.warning("no checkpoint at step %d: %s; training goes on", step, reason)
            discard(self.folder / f"step-{step}")

    def _save(self, trainer: lightning.Trainer, name: str, step: int) -> None:
        place = self.folder / name
        if self.ranks.rank == 0:
            discard(place)  # of a process that was killed while it saved
        if self.ranks.size > 1:
            dist.barrier()
        trainer.save_checkpoint(place if self.config.trainer.strategy == "deepspeed" else place / SINGLE)
        digests: dict[str, Digest] = {}
        for hashed in from_all_ranks(getattr(trainer.strategy, "hashed", {})):
            digests |= hashed
        if self.ranks.rank == 0:
            fencing.check(self.folder)
            said = layout(self.config, self.ranks, name, step) | {"learned_from": self._learned_from}
            keep(self.folder, said, self.config, digests)

    def on_save_checkpoint(self, trainer: lightning.Trainer, module: Any, checkpoint: dict[str, Any]) -> None:
        """The batch that is about to start hasn't been trained on: whoever goes on from here begins with it."""
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        for count in ("total", "current"):
            progress[count]["ready"] -= 1

    def setup(self, trainer: lightning.Trainer, pl_module: Any, stage: str) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)

    def state_dict(self) -> dict[str, Any]:
        return {"saved": self.saved}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.saved = state_dict["saved"]


class DamagedError(ValueError):
    """The best weights aren't those that were kept."""


def read_best(folder: Path) -> dict[str, Any]:
    """Read the description of a folder's best weights, as RunRecord.best has it; empty if there are none.

    Raises DamagedError where the file can't be read, or holds other weights than its header says.
    """
    path = folder / BEST
    try:
        with safe_open(path, framework="pt") as weights:
            said = json.loads((weights.metadata() or {})["best"])
            held = {name: weights.get_tensor(name) for name in weights.keys()}  # noqa: SIM118  (no mapping)
        if said["content"] != content_of(held):
            raise ValueError("it isn't what was saved")
        return {name: said[name] for name in ("metric", "value", "step")} | {"weights_sha256": file_sha256(path)}
    except FileNotFoundError:
        return {}
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise DamagedError(str(error)) from None


class BestKeeper(lightning.Callback):
    """Saves the weights at each validation that improves the metric, which is minimised; the recorder has its values.

    The file says in its own header what it is, so that it can't be at odds with it: a run that goes on compares with what
    lies there, even where that is of a step after its checkpoint. A run that starts anew starts without.
    """

    def __init__(self, config: RunConfig, folder: Path, ranks: Ranks, recorder: Recorder) -> None:
        self.config, self.folder, self.ranks, self.recorder = config, folder, ranks, recorder
        self._seen = 0

    def begin(self, *, goes_on: bool) -> None:
        """Take up what lies in the folder, or delete it."""
        if self.config.trainer.keep_best is None or self.ranks.rank > 0:
            return
        if not goes_on:
            fencing.remove(self.folder / BEST)
            return
        try:
            self.recorder.best = read_best(self.folder)
        except DamagedError as error:
            set_aside(self.folder / FOLDER, BEST, f"{error}; what is best is kept from here on", self.folder)

    def on_train_end(self, trainer: lightning.Trainer, module: Any) -> None:
        self.on_validation_end(trainer, module)  # the last validation may be the recorder's own

    def on_validation_end(self, trainer: lightning.Trainer, module: Any) -> None:
        metric, validation = self.config.trainer.keep_best, self.recorder.validation
        if metric is None or not validation or validation["step"][-1] == self._seen:
            return
        self._seen = int(validation["step"][-1])
        value, best = validation[metric][-1], self.recorder.best
        better = math.isfinite(value) and (not best or below(value, best["value"]))
        if not from_all_ranks(better)[0]:  # rank 0 knows what lies in the folder; all save together
            return
        # One entry: the library writes several in an order of chance, and equal weights would have unequal hashes.
        said = {"metric": metric, "value": value, "step": self._seen}

        def header(weights: Mapping[str, Tensor]) -> dict[str, str]:
            return {"best": json.dumps(said | {"content": content_of(weights)})}

        content = save_weights(module.denoiser, self.config, self.folder, self.ranks, BEST, header)
        if content is not None:
            self.recorder.best = said | {"weights_sha256": content}
