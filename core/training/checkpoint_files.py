"""Checkpoints on disk: found again by whoever trains the run next, without the libraries that train.

checkpoints/step-N/       a checkpoint: its files, and seal.json, which says what they were (core.training.seals)
            latest.json   the newest, for whoever asks how far the run is
            set-aside/    what can't be gone on from: moved there, never deleted; and notes.txt, a sentence a line for
                          the run's record, whoever trained it
"""

import itertools
import json
import logging
import os
import re
import shutil
from pathlib import Path
from typing import Any, NamedTuple

from core.config.run import RunConfig, content_hash, to_dict
from core.records import fencing, run_record
from core.runtime.ranks import Ranks
from core.runtime.retry import no_space
from core.training import seals

STAGES = "stages"  # in a run's folder, the runs of its first stages by arm hash
FOLDER = "checkpoints"
LATEST = "latest.json"
SET_ASIDE = "set-aside"
NOTES = "notes.txt"
SINGLE = "single.ckpt"  # in a checkpoint of one device, Lightning's
WEIGHTS = "model.safetensors"  # those of the last step, of the whole model
BEST = "best.safetensors"  # the weights that trainer.keep_best keeps
UNIVERSAL_STAGE = 2  # at 3, losses diverge after a universal checkpoint is loaded (deepspeed 0.19.8)
KEPT = 2  # the newest ones
NAME = re.compile(r"step-(\d+)(-universal)?")
LAYOUT = ("strategy", "stage", "devices", "expert_parallel")

log = logging.getLogger(__name__)


class Checkpoint(NamedTuple):
    """A checkpoint to go on from: where it lies, after which step, and whether it is in DeepSpeed's universal format."""

    path: Path
    step: int
    universal: bool = False


def layout(config: RunConfig, ranks: Ranks, name: str, step: int) -> dict[str, Any]:
    """Description of a checkpoint: its name, its step, and how the training was spread."""
    return {
        "name": name,
        "step": step,
        "strategy": config.trainer.strategy,
        "stage": config.deepspeed.stage,
        "devices": ranks.size,
        "expert_parallel": ranks.expert_parallel,
    }


def identity(config: RunConfig) -> str:
    """Identity of a checkpoint's run, independent of its layout and of the path of its initial weights."""
    content = to_dict(config)
    del content["deepspeed"]
    content["trainer"] = content["trainer"] | {"initial_weights": None}
    return content_hash(content)


def keep(folder: Path, said: dict[str, Any], config: RunConfig, digests: dict[str, seals.Digest]) -> None:
    """Seal the checkpoint that `said` names, say in latest.json that it is the newest, and delete all older ones but one."""
    seals.seal(folder / said["name"], {**said, "run": identity(config)}, digests)
    # Listed before the new one counts: a process that takes the run over adds to them, and those aren't ours to delete.
    named = [path.name for path in folder.iterdir() if NAME.fullmatch(path.name)]
    run_record.write_atomically(folder / LATEST, json.dumps(said) + "\n")
    whole = sorted((name for name in named if (folder / name / seals.SEAL).is_file()), key=order_of, reverse=True)
    for name in set(named) - set(whole[:KEPT]):
        discard(folder / name)


def discard(path: Path) -> None:
    """Delete a checkpoint, or what is left of one: its seal first, so that no half of it is taken for a whole one."""
    fencing.check(path)
    if path.is_dir() and not path.is_symlink():
        (path / seals.SEAL).unlink(missing_ok=True)
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def read_latest(place: Path) -> dict[str, Any] | None:
    """Content of latest.json; None if there is none. Raises ValueError for unusable content."""
    try:
        latest = json.loads((place / LATEST).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, RecursionError) as error:
        raise ValueError(str(error)) from None
    if not isinstance(latest, dict) or not isinstance(latest.get("step"), int):
        raise ValueError("no step")
    if not NAME.fullmatch(str(latest.get("name"))):
        raise ValueError("no checkpoint's name")
    return latest


def candidates(place: Path) -> list[str]:
    """Names of what was finished, or is said to have been: the newest first. What was cut off in saving is none."""
    latest = read_latest(place) or {"name": None}
    found = [path for path in place.iterdir() if NAME.fullmatch(path.name)] if place.is_dir() else []
    finished = [path.name for path in found if path.name == latest["name"] or (path / seals.SEAL).exists()]
    return sorted(finished, key=order_of, reverse=True)


def order_of(name: str) -> tuple[int, bool]:
    """By step; one that was converted before what it was converted from."""
    match = NAME.fullmatch(name)
    assert match is not None
    return int(match[1]), bool(match[2])


def saved_step(folder: Path) -> int | None:
    """The step after which a folder's run can go on, as far as can be seen without reading the checkpoint; None without."""
    place = folder / FOLDER
    try:
        latest = json.loads((place / LATEST).read_text(encoding="utf-8"))
        return int(latest["step"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):  # none, or half of one: `find` mends it
        sealed = [path.name for path in place.glob("step-*") if (path / seals.SEAL).is_file()]
        return max((order_of(name)[0] for name in sealed if NAME.fullmatch(name)), default=None)


def remove(folder: Path) -> None:
    """Delete the checkpoints of a run that is complete, but what was set aside."""
    place = folder / FOLDER
    if (place / SET_ASIDE).exists():
        for path in place.iterdir():
            if path.name != SET_ASIDE:
                discard(path)
    else:
        shutil.rmtree(place, ignore_errors=True)


def note(checkpoints: Path, sentence: str) -> None:
    """Have the run's record say something, whoever leaves it."""
    fencing.check(checkpoints)
    sentence = "".join(letter if letter.isprintable() else "?" for letter in sentence)
    log.warning("%s", sentence)
    try:
        (checkpoints / SET_ASIDE).mkdir(parents=True, exist_ok=True)
        with (checkpoints / SET_ASIDE / NOTES).open("a", encoding="utf-8") as file:
            file.write(sentence + "\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        if no_space(error) is None:
            raise
        log.warning("the record will lack this: %s", no_space(error))


def notes(checkpoints: Path) -> list[str]:
    """Notes of a run so far."""
    try:
        lines = (checkpoints / SET_ASIDE / NOTES).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    return [line for line in lines if line.isprintable() and line]


def set_aside(checkpoints: Path, name: str, why: str, holder: Path | None = None) -> None:
    """Move what has that name in `holder` (that of the checkpoints) out of the way, and note it."""
    fencing.check(checkpoints)
    place = checkpoints / SET_ASIDE
    place.mkdir(parents=True, exist_ok=True)
    names = (name if n == 1 else f"{name}-{n}" for n in itertools.count(1))
    target = next(target for target in map(place.joinpath, names) if not os.path.lexists(target))
    ((holder or checkpoints) / name).rename(target)
    note(checkpoints, f"{name} was set aside as {target.relative_to(checkpoints.parent)}: {why}")
