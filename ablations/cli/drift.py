"""Changes of a declaration since its study was last run."""

import argparse
import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ablations.cli import studies
from ablations.cli.declarations import recorded_design
from core.errors import UserError
from core.records import run_record
from core.records.designs import Design, DesignArm, StudyDesign
from core.records.run_folders import list_runs
from core.records.run_record import OutOfReachError, UnreadableRecordError
from core.records.study_history import changes
from sweeps.studies.resolve import outline
from sweeps.studies.study import CONFIRM, first_seeds, study_name


def drift(arguments: argparse.Namespace, size: str) -> str:
    """The differences between a declaration and its recorded design, and the command to type; empty if there are none."""
    name, declaration = studies.declared(arguments.name)
    folder = arguments.out / study_name(name, size)
    design = recorded_design(folder)
    if not isinstance(design, Design):
        return ""
    try:
        said, trains = _changes(name, declaration, size, design, folder)
    except UserError as error:
        return f"the declaration no longer gives the design of these runs: {error}"
    if not said:
        return ""
    command = last_command(arguments, size, design)
    does = "trains what is new" if trains else "takes this over"
    return f"the declaration was changed since these runs were planned: {'; '.join(said)}: `{command}` {does}"


def _changes(name: str, study: Any, size: str, design: Design, folder: Path) -> tuple[list[str], bool]:
    """Differences in words, and whether they need runs."""
    words = shlex.split(design.command)
    given = int(words[words.index("--seeds") + 1]) if "--seeds" in words and design.confirms is None else None
    base = size.removesuffix(f".{CONFIRM}") if design.confirms is not None else size
    now, configs = outline(name, first_seeds(study, given), size=base, overrides=design.overrides)
    if design.confirms is not None:
        arms = tuple(arm for arm in now.arms if arm.name in design.by_name or arm.name == now.control)
        now = replace(now, arms=arms, seeds=design.seeds, contrasts=design.contrasts, decoders=None)
    after = {arm.name: arm.hash for arm in now.arms}
    differing = [arm for arm in design.arms if after.get(arm.name, arm.hash) != arm.hash]
    said = changes(design, now, ({arm.name: _config(folder, arm) for arm in differing[:1]}, configs))
    return said, not _runs(now) <= _runs(design)


def _runs(design: Design) -> set[tuple[str, int]]:
    return {(arm.hash, seed) for arm in design.arms for seed in design.seeds}


def _config(folder: Path, arm: DesignArm) -> Mapping[str, Any]:
    """The config that an arm was trained with, by one of its records; empty where it has none."""
    for path in list_runs(folder / arm.name, depth=1).records:
        try:
            record = run_record.read(path)
        except (FileNotFoundError, UnreadableRecordError, OutOfReachError):
            continue
        if record.arm_hash == arm.hash:
            return record.config
    return {}


def last_command(arguments: argparse.Namespace, size: str, design: StudyDesign) -> str:
    """The command that the design was last run with, for the declaration by the name that it has now."""
    words = shlex.split(design.command)
    if len(words) < 3:
        return studies.command("run", arguments, size)
    return shlex.join([*words[:2], arguments.name, *words[3:]])
