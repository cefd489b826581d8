"""Declarations and their folders of runs: whose a folder is, which size is meant, refusals where nothing was run."""

import argparse
import shlex
from pathlib import Path

from ablations.cli import studies
from core.errors import UserError
from core.records import designs
from core.records.designs import StudyDesign
from core.runtime.json_files import DamagedFileError
from sweeps.studies.study import CONFIRM, study_name


def check_owner(arguments: argparse.Namespace, study: str) -> None:
    """Refuse a folder of runs that another declaration of the same name made."""
    design = recorded_design(arguments.out / study)
    if design is None or (theirs := _declared_in(design)) is None:
        return
    mine = studies.declared_in(arguments.name)
    if theirs == mine or _is_same(theirs, mine, design, arguments.name):
        return
    holds = f"{arguments.out / study} holds the runs of {theirs}"
    if theirs not in studies.discover() and not Path(theirs).exists():  # moved and edited, or another one: who can tell
        raise UserError(
            f"{holds}, which is gone, and of another question ({design.question!r}): where {mine} is that declaration, "
            f"run it with that question first, then change it; else give it an --out of its own"
        )
    raise UserError(
        f"{holds}, another declaration of the same name than {mine}: rename one of the files, or give each an --out of its "
        "own"
    )


def left_behind(arguments: argparse.Namespace, study: str) -> str:
    """A hint on runs recorded under the declaration's former name: their folder and the commands to adopt them; or empty."""
    name, declaration = studies.declared(arguments.name)
    for path in sorted(arguments.out.glob(f"*/{designs.FILE_NAME}")):
        design = recorded_design(path.parent)
        if design is None or path.parent.name == study or design.question != declaration.question:
            continue
        theirs = _declared_in(design)
        if theirs is None or theirs == studies.declared_in(arguments.name) or Path(theirs).exists():
            continue
        if theirs in studies.discover() or design.size.endswith(CONFIRM):
            continue
        target = arguments.out / study_name(name, design.size)
        move = shlex.join(["mv", str(path.parent), str(target)])
        again = studies.command("run", arguments, design.size)
        where = f"runs of this question lie in {path.parent}, declared in {theirs}, which is gone"
        return f"{where}: `{move}`, then `{again}` takes them over"
    return ""


def recorded_design(folder: Path) -> StudyDesign | None:
    """The design last run in a folder; None where none was, or where it is damaged, which whoever needs it says."""
    try:
        return StudyDesign.read(folder / designs.FILE_NAME)
    except (OSError, DamagedFileError):
        return None


def _declared_in(design: StudyDesign) -> str | None:
    """The study in `ablations/`, or the file, that a design was declared in; of older ones by the command; None: unknown."""
    if design.declared_in is not None:
        return design.declared_in
    words = shlex.split(design.command)
    return str(Path(words[2]).absolute()) if len(words) > 2 and words[2].endswith(".py") else None


def _is_same(theirs: str, mine: str, design: StudyDesign, name: str) -> bool:
    """True if two files are one declaration: equal files where both exist, an equal question where the former is gone."""
    try:
        return Path(theirs).read_bytes() == Path(mine).read_bytes()
    except OSError:
        return bool(design.question == studies.declared(name)[1].question)


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
