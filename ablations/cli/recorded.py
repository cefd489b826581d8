"""Folders of runs by the name of their declaration; refusals where nothing has been run or recorded."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ablations.cli import studies
from ablations.cli.declarations import left_behind
from core.errors import UserError
from sweeps.studies.study import CONFIRM, study_name

if TYPE_CHECKING:
    from analysis.study import Study


def study_of(arguments: argparse.Namespace) -> tuple[str, str]:
    """The study that NAME and --size mean, and its kind: where no size is named, the only one that was run."""
    name, declaration = studies.declared(arguments.name)
    return study_name(name, studies.meant_size(name, declaration, arguments.out, arguments.size)), declaration.kind


def started_folder(arguments: argparse.Namespace) -> tuple[str, str]:
    """The study and its kind, as by `study_of`. Raises UserError where nothing of it has been run."""
    study, kind = study_of(arguments)
    check_started(study, arguments)
    return study, kind


def check_started(study: str, arguments: argparse.Namespace) -> None:
    """Refuse a study that has no folder of runs."""
    if not (arguments.out / study).is_dir():
        hint = left_behind(arguments, study)
        raise UserError(
            f"nothing of {study} has been run in {arguments.out.absolute()}" + (f": {hint}" if hint else "")
        )


def recorded_folder(arguments: argparse.Namespace) -> tuple[str, Path]:
    """The size that is meant of a study, and its folder of runs. Raises UserError where there is none."""
    name, declaration = studies.declared(arguments.name)
    recorded = studies.recorded_sizes(arguments.out, name, declaration)
    size = studies.meant_size(name, declaration, arguments.out, arguments.size)
    if size not in recorded:
        raise nothing_recorded(arguments, name, size)
    return size, recorded[size]


def nothing_recorded(arguments: argparse.Namespace, name: str, size: str) -> UserError:
    """The mistake of asking for records before there are any."""
    verb, of = ("confirm", size.removesuffix(f".{CONFIRM}")) if size.endswith(f".{CONFIRM}") else ("run", size)
    hint = left_behind(arguments, study_name(name, size)) or f"run it with {studies.command(verb, arguments, of)}"
    return UserError(f"nothing is recorded of {name} ({size}) in {arguments.out.absolute()}: {hint}")


def load_study(arguments: argparse.Namespace) -> tuple["Study", Path]:
    """Records of the named ablation in the chosen size, and its folder. Raises UserError where nothing is."""
    from analysis.study import Study  # numpy, which mistakes are refused without

    studies.declared_with_arms(arguments.name)
    size, folder = recorded_folder(arguments)
    study = Study.load(folder)
    if study is None:
        raise nothing_recorded(arguments, Path(arguments.name).stem, size)
    return study, folder


def drift_note(arguments: argparse.Namespace) -> list[str]:
    """A sentence on what was changed of the declaration since it was run; none where nothing was."""
    said = getattr(arguments, "drift", "")
    return [f"{said[0].upper()}{said[1:]}."] if said else []
