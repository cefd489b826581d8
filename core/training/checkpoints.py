"""Checkpoints of a run: saved whole or not at all, the last one kept, and found again by whoever trains it next."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import lightning
import torch.distributed as dist

from core import records
from core.config import RunConfig
from core.errors import UserError
from core.ranks import Ranks

FOLDER = "checkpoints"
LATEST = "latest.json"
UNIVERSAL_STAGE = 2  # at 3, losses diverge after a universal checkpoint is loaded (deepspeed 0.19.8)


class Checkpoint(NamedTuple):
    """A checkpoint to go on from: where it lies, after which step, and whether it is in DeepSpeed's universal format."""

    path: Path
    step: int
    universal: bool = False


class StepReachedError(Exception):
    """The step was reached after which training was to pause; its checkpoint is whole."""


class Checkpointer(lightning.Callback):
    """Saves every `trainer.checkpoint_every` steps, between the validation of a step and the next step.

    What is older is deleted once the new one is complete on every rank and named in latest.json. After the step
    `pause_after` it saves too, and raises StepReachedError.
    """

    def __init__(self, config: RunConfig, folder: Path, ranks: Ranks, pause_after: int | None = None) -> None:
        self.config, self.folder, self.ranks, self.pause_after = config, folder / FOLDER, ranks, pause_after
        self.saved = 0

    def on_train_batch_start(self, trainer: lightning.Trainer, module: Any, batch: Any, batch_idx: int) -> None:
        every, step = self.config.trainer.checkpoint_every, trainer.global_step
        if not step or batch_idx % self.config.trainer.accumulate:
            return
        pause = self.pause_after is not None and step >= self.pause_after
        if step != self.saved and (pause or (every and not step % every)):
            self._save(trainer, step)
        if pause:
            raise StepReachedError(f"paused after step {step} of {self.config.trainer.steps}")

    def _save(self, trainer: lightning.Trainer, step: int) -> None:
        name = f"step-{step}"
        trainer.save_checkpoint(self.folder / name)
        if self.ranks.size > 1:
            dist.barrier()
        self.saved = step
        if self.ranks.rank == 0:
            records.write_atomically(
                self.folder / LATEST, json.dumps(_layout(self.config, self.ranks, name, step)) + "\n"
            )
            for old in self.folder.iterdir():
                if old.name not in (name, LATEST):
                    shutil.rmtree(old) if old.is_dir() else old.unlink()

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

    One that another number of devices saved at ZeRO-2 can be converted: `convert` does it, by one process before the
    ranks start. Raises UserError for any other layout.
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
    if convert and set(unlike) == {"devices"} and latest["stage"] == UNIVERSAL_STAGE and not universal:
        return _convert(path, wanted)
    raise UserError(
        f"{folder / FOLDER} holds a checkpoint of another layout ({'; '.join(unlike.values())}): go on with that layout, "
        "or delete it to start again (at deepspeed.stage=2 only, --devices may be changed)"
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
