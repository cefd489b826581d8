"""Choice of the checkpoint to resume from: the newest intact one signed by this user. Newer ones are set aside.

Without the libraries that train, like core.training.checkpoint_files.
"""

import contextlib
import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from core.config.run import RunConfig
from core.data.inputs import learned_from
from core.errors import UserError
from core.records import fencing, run_record
from core.runtime.child_process import import_path, module_command
from core.runtime.ranks import Ranks
from core.training import seals
from core.training.checkpoint_files import (
    FOLDER,
    LATEST,
    LAYOUT,
    UNIVERSAL_STAGE,
    Checkpoint,
    candidates,
    discard,
    identity,
    keep,
    layout,
    note,
    read_latest,
    set_aside,
)
from core.training.seals import SealError


def find(
    config: RunConfig,
    folder: Path,
    ranks: Ranks,
    *,
    convert: bool = False,
    agree: Callable[[Any], list[Any]] | None = None,
) -> Checkpoint | None:
    """The run's last checkpoint that is whole and this user's; what is newer but isn't is set aside.

    One that was saved at ZeRO-2 over other devices or groups of experts can be converted: `convert` does it, by one
    process before the ranks start. agree: gives what every rank gave; all ranks must call this then, and each reads a share
    of the files. Raises UserError for any other layout.
    """
    place, share = folder / FOLDER, (ranks.rank, ranks.size) if agree else (0, 1)
    everyone = agree or (lambda value: [value])
    lost = everyone(_look(place) if share[0] == 0 else False)[0]
    while True:
        newest = everyone(_newest(place, config) if share[0] == 0 else None)[0]
        if newest is None:
            break
        name, said, problem = newest
        problem = next(filter(None, everyone(problem or seals.damage(place / name, said["files"], share))), None)
        if problem is None:
            break
        lost = True
        if share[0] == 0:
            set_aside(place, name, problem)
    if share[0] == 0:
        _say_latest(place, newest[1] if newest else None, lost)
    return _fitting(config, place, ranks, newest[1], convert) if newest else None


def _look(place: Path) -> bool:
    """True if latest.json tells of a checkpoint that isn't there, or of none in a way that can be read; noted then."""
    try:
        latest = read_latest(place)
    except ValueError:
        set_aside(place, LATEST, "it can't be read")
        return True
    if latest is None or os.path.lexists(place / latest["name"]):
        return False
    note(place, f"{latest['name']} is missing")
    return True


def _newest(place: Path, config: RunConfig) -> tuple[str, dict[str, Any], str | None] | None:
    """The newest checkpoint: its name, what is said of it, and what is wrong with that."""
    for name in candidates(place):
        try:
            said = seals.read_seal(place / name)
        except SealError as error:
            return name, {"files": {}}, str(error)
        if (said["name"], said["run"]) != (name, identity(config)):
            return name, said, "it is another run's, or of another step"
        now = learned_from(config)
        if (then := said.get("learned_from", now)) != now:  # versions that didn't say compare nothing
            return name, said, f"it was trained on {then}, and what lies there now is {now}"
        return name, said, None
    return None


def _say_latest(place: Path, said: dict[str, Any] | None, lost: bool) -> None:
    """Note from where the run goes on, and have latest.json say so."""
    if lost:
        note(place, f"the run goes on from {said['name']}" if said else "the run starts again from its first step")
    if said is None:
        fencing.remove(place / LATEST)
        return
    content = {name: value for name, value in said.items() if name not in ("files", "run")}
    if read_latest(place) != content:  # its writer was cut off, or what it named was set aside
        with contextlib.suppress(OSError):  # the disk may be full, and nothing depends on it
            run_record.write_atomically(place / LATEST, json.dumps(content) + "\n")


def _fitting(config: RunConfig, place: Path, ranks: Ranks, said: dict[str, Any], convert: bool) -> Checkpoint:
    """A checkpoint that is whole, converted where it is of another layout and may be. Raises UserError otherwise."""
    wanted = layout(config, ranks, said["name"], said["step"])
    unlike = {name: f"{name} {said[name]}, not {wanted[name]}" for name in LAYOUT if said[name] != wanted[name]}
    universal = bool(said.get("universal"))
    if not unlike:
        return Checkpoint(place / said["name"], said["step"], universal)
    convertible = said["stage"] == UNIVERSAL_STAGE and not universal
    if convert and convertible and unlike.keys() <= {"devices", "expert_parallel"}:
        return _convert(place / said["name"], wanted, config)
    raise UserError(
        f"{place} holds a checkpoint of another layout ({'; '.join(unlike.values())}): go on with that layout, "
        "or delete it to start again (at deepspeed.stage=2 only, --devices and deepspeed.expert_parallel may be changed)"
    )


def _convert(path: Path, said: dict[str, Any], config: RunConfig) -> Checkpoint:
    """Rewrite a checkpoint, known to be whole, in the universal format, which any number of devices can read."""
    target = path.with_name(f"{path.name}-universal")
    discard(target)
    source, out = path / "checkpoint", target / "checkpoint"
    command = module_command("core.training.deepspeed_checkpoints", str(source), str(out))
    environment = os.environ | import_path() | {"DS_ACCELERATOR": "cpu"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise RuntimeError(f"DeepSpeed can't convert {path}: {(done.stderr.strip().splitlines() or ['no reason'])[-1]}")
    keep(path.parent, said | {"name": target.name, "universal": True}, config, {})
    return Checkpoint(target, said["step"], universal=True)
