"""Checkpoints of a run: saved whole or not at all, the last one kept, and found again by whoever trains it next."""

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, NamedTuple

import lightning
import torch
import torch.distributed as dist

from core import records
from core.config import RunConfig
from core.errors import UserError
from core.patience import no_space
from core.ranks import Ranks
from core.training import pausing
from core.training.pausing import TrainingPausedError

FOLDER = "checkpoints"
LATEST = "latest.json"
UNIVERSAL_STAGE = 2  # at 3, losses diverge after a universal checkpoint is loaded (deepspeed 0.19.8)

log = logging.getLogger(__name__)


class Checkpoint(NamedTuple):
    """A checkpoint to go on from: where it lies, after which step, and whether it is in DeepSpeed's universal format."""

    path: Path
    step: int
    universal: bool = False


class StepReachedError(Exception):
    """The step was reached after which training was to pause; its checkpoint is whole."""


class Checkpointer(lightning.Callback):
    """Saves every `trainer.checkpoint_every` steps, between the validation of a step and the next step.

    What is older is deleted once the new one is complete on every rank and named in latest.json. Where the training is asked
    to pause (core.training.pausing), it saves after the step under way and raises TrainingPausedError; after the step
    `pause_after` it saves too, and raises StepReachedError.
    """

    def __init__(self, config: RunConfig, folder: Path, ranks: Ranks, pause_after: int | None = None) -> None:
        self.config, self.folder, self.ranks, self.pause_after = config, folder / FOLDER, ranks, pause_after
        self.saved = 0
        self._votes: Any = None
        self._handler = signal.getsignal(signal.SIGTERM)

    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        if self.ranks.size > 1:  # on the host, so that no step waits for a GPU
            self._votes = dist.new_group(backend="gloo")
        if callable(self._handler) and threading.current_thread() is threading.main_thread():
            # Lightning's own ends the fit before a checkpoint can be saved.
            signal.signal(signal.SIGTERM, self._handler)

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
        """Whether any rank was asked to pause: all of them have to save the same step."""
        if self._votes is None:
            return pausing.requested()
        vote = torch.tensor([int(pausing.requested())])
        dist.all_reduce(vote, group=self._votes)
        return bool(vote)

    def _try_to_save(self, trainer: lightning.Trainer, step: int) -> None:
        self.saved = step  # the checkpoint says so too
        try:
            self._save(trainer, f"step-{step}", step)
        except Exception as error:
            # Ranks save together: what one of them can't do, the others don't go on without.
            if self.ranks.size > 1 or (reason := no_space(error)) is None:
                raise
            log.warning("no checkpoint at step %d: %s; training goes on", step, reason)
            _remove(self.folder / f"step-{step}")

    def _save(self, trainer: lightning.Trainer, name: str, step: int) -> None:
        trainer.save_checkpoint(self.folder / name)
        if self.ranks.size > 1:
            dist.barrier()
        if self.ranks.rank == 0:
            content = json.dumps(_layout(self.config, self.ranks, name, step)) + "\n"
            records.write_atomically(self.folder / LATEST, content)
            for old in self.folder.iterdir():
                if old.name not in (name, LATEST):
                    _remove(old)

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


def _remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def _layout(config: RunConfig, ranks: Ranks, name: str, step: int) -> dict[str, Any]:
    return {
        "name": name,
        "step": step,
        "strategy": config.trainer.strategy,
        "stage": config.deepspeed.stage,
        "devices": ranks.size,
        "expert_parallel": ranks.expert_parallel,
    }


def find(config: RunConfig, folder: Path, ranks: Ranks, *, convert: bool = False) -> Checkpoint | None:
    """The run's last complete checkpoint.

    One that was saved at ZeRO-2 over other devices or groups of experts can be converted: `convert` does it, by one
    process before the ranks start. Raises UserError for any other layout.
    """
    try:
        latest = json.loads((folder / FOLDER / LATEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    universal = bool(latest.pop("universal", False))
    wanted = _layout(config, ranks, latest["name"], latest["step"])
    unlike = {name: f"{name} {latest[name]}, not {wanted[name]}" for name in wanted if latest[name] != wanted[name]}
    path = folder / FOLDER / latest["name"]
    if not unlike:
        return Checkpoint(path, latest["step"], universal)
    if (
        convert
        and set(unlike) <= {"devices", "expert_parallel"}
        and latest["stage"] == UNIVERSAL_STAGE
        and not universal
    ):
        return _convert(path, wanted)
    raise UserError(
        f"{folder / FOLDER} holds a checkpoint of another layout ({'; '.join(unlike.values())}): go on with that layout, "
        "or delete it to start again (at deepspeed.stage=2 only, --devices and deepspeed.expert_parallel may be changed)"
    )


def _convert(path: Path, layout: dict[str, Any]) -> Checkpoint:
    """Rewrite a checkpoint in the universal format, which any number of devices can read."""
    target = path.with_name(f"{path.name}-universal")
    shutil.rmtree(target, ignore_errors=True)
    source, out = path / "checkpoint", target / "checkpoint"
    command = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal", "--num_extract_workers", "1"]
    command += ["--num_merge_workers", "1", "--input_folder", str(source), "--output_folder", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"DS_ACCELERATOR": "cpu"})
    if done.returncode:
        raise RuntimeError(f"DeepSpeed can't convert {path}: {(done.stderr.strip().splitlines() or ['no reason'])[-1]}")
    content = layout | {"name": target.name, "universal": True}
    records.write_atomically(path.parent / LATEST, json.dumps(content) + "\n")
    return Checkpoint(target, layout["step"], universal=True)


def saved_step(folder: Path) -> int | None:
    """The step after which a folder's run can go on; None where it has no whole checkpoint."""
    try:
        return int(json.loads((folder / FOLDER / LATEST).read_text(encoding="utf-8"))["step"])
    except FileNotFoundError:
        return None


def remove(folder: Path) -> None:
    """Delete the checkpoints of a run that is complete."""
    shutil.rmtree(folder / FOLDER, ignore_errors=True)
