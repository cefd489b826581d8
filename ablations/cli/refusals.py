"""Early refusal of mistakes that the command line, a declaration or a folder of runs shows, before a handler is imported."""

import argparse
import sys
from pathlib import Path

from ablations.cli import studies
from ablations.cli.command import Command
from ablations.cli.declarations import check_owner, check_started, left_behind, recorded_folder, started_folder
from ablations.cli.kinds import module_of
from core.config.loading import build, parse_overrides
from core.config.run import known_keys
from core.errors import UserError
from core.runtime.printable import one_line, say
from sweeps.studies.study import STUDY_KINDS, edition_of, first_seeds, study_name


def refuse_early(command: Command, arguments: argparse.Namespace) -> None:
    """Raise the UserError that the command itself would raise, seconds earlier. The command checks everything again.

    Sets `study_kind`, the kind of study that NAME declares: empty where it is no declaration.
    """
    _check_folders(command, arguments)
    arguments.study_kind = ""
    or_folder = "folder" in command.checks
    if not (command.study or or_folder) or (or_folder and Path(arguments.name).is_dir()):
        return
    stem, declaration = studies.declared(arguments.name)
    arguments.study_kind = declaration.kind
    if "runs" in command.checks and "plan" not in command.checks and not getattr(arguments, "wandb", None):
        started_folder(arguments)
    _check_folder_of_runs(command, arguments, stem)
    if "plan" in command.checks:
        edition = edition_of(stem, first_seeds(declaration, arguments.seeds), arguments.size or "full")
        settings = parse_overrides(arguments.settings)
        if unknown := {key: value for key, value in settings.items() if key not in known_keys()}:
            build(unknown)
        STUDY_KINDS[declaration.kind].check(edition, settings)
        if "runs" in command.checks:
            check_started(study_name(stem, arguments.size or "full"), arguments)
    elif "records" in command.checks and STUDY_KINDS[declaration.kind].has_arms:
        recorded_folder(arguments)


def _check_folder_of_runs(command: Command, arguments: argparse.Namespace, stem: str) -> None:
    """Refuse another declaration's folder; keep what was changed of this one since (`drift`) for the command, or say it."""
    _, declaration = studies.declared(arguments.name)
    size = arguments.size or "full"
    if "plan" not in command.checks and size in ("full", *declaration.sizes):
        first = "any size" in command.checks
        size = studies.meant_size(stem, declaration, arguments.out, arguments.size, first_of_several=first)
    study = study_name(stem, size)
    check_owner(arguments, study)
    if not (arguments.out / study).is_dir():
        starts = command.changes == "ignored" and "runs" not in command.checks
        if starts and (hint := left_behind(arguments, study)):
            say(f"note: {hint}; else they are trained anew", file=sys.stderr)
        return
    if command.changes == "ignored":
        return  # it goes by what the declaration says now, or by none
    found = module_of(declaration.kind, "drift").drift(arguments, size)
    arguments.drift = one_line(found)  # with labels and questions of whoever wrote them
    if arguments.drift and command.changes == "noted":
        say(f"note: {arguments.drift}", file=sys.stderr)


def _check_folders(command: Command, arguments: argparse.Namespace) -> None:
    for option in ("to", "files", *(("out",) if "out" in command.checks else ())):
        folder = getattr(arguments, option, None)
        if folder is None:
            continue
        if option == "to" and command.name == "bench":  # a file of results, which may be there from before
            folder = folder.parent
        there = next(place for place in (folder, *folder.parents) if place.is_symlink() or place.exists())
        if not there.is_dir():
            raise UserError(f"--{option} {folder}: {there} is no folder: name another, or move it away")
