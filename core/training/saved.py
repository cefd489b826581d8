"""Checkpoints on disk: found again by whoever trains the run next, without the libraries that train."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

from core import records
from core.config import RunConfig
from core.errors import UserError
from core.ranks import Ranks

STAGES = "stages"  # in a run's folder, the runs of its first stages by arm hash
FOLDER = "checkpoints"
LATEST = "latest.json"
WEIGHTS = "model.safetensors"  # those of the last step, of the whole model
BEST = "best.safetensors"  # the weights that trainer.keep_best keeps
UNIVERSAL_STAGE = 2  # at 3, losses diverge after a universal checkpoint is loaded (deepspeed 0.19.8)


class Checkpoint(NamedTuple):
    """A checkpoint to go on from: where it lies, after which step, and whether it is in DeepSpeed's universal format."""

    path: Path
    step: int
    universal: bool = False


def layout(config: RunConfig, ranks: Ranks, name: str, step: int) -> dict[str, Any]:
    """What latest.json says of a checkpoint: its name, its step, and how the training was spread."""
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
    wanted = layout(config, ranks, latest["name"], latest["step"])
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
