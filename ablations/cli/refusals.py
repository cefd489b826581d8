"""Mistakes that the command line, a declaration and the folder of runs show, refused before a command's own imports."""

import argparse
import sys
from pathlib import Path

from ablations.cli import studies as agenda
from ablations.cli.declarations import check_owner, drift, left_behind
from core.config.loading import build, parse_overrides
from core.config.run import known_keys
from core.errors import UserError
from core.runtime.printable import one_line, say
from sweeps.studies.ablation import Ablation
from sweeps.studies.study import edition_of, first_seeds, study_name

PLANNED = ("plan", "run", "retry", "decode")  # make a plan, with settings
RECORDED = ("report", "confirm", "export")  # judge what is recorded
STARTED = ("status", "cancel", "sync")  # follow a sweep or a search that has been started
SHOWN = ("report", "status", "verify")  # show themselves what of a declaration was changed
OF_FOLDERS = ("export", "probe")  # take a run's folder as well
WRITERS = ("train", "data", "import")  # into the folder of runs, without asking whether it is one


def refuse_early(arguments: argparse.Namespace) -> None:
    """Raise the UserError that the command itself would raise, seconds earlier. The command checks everything again."""
    _check_folders(arguments)
    name = getattr(arguments, "name", None)
    if name is None or arguments.command == "data" or (arguments.command in OF_FOLDERS and Path(name).is_dir()):
        return
    stem, declaration = agenda.declared(name)
    if arguments.command in STARTED or (arguments.command == "dashboard" and not arguments.wandb):
        agenda.started_folder(arguments)
    _hold_against(arguments, stem)
    if not isinstance(declaration, Ablation):
        return
    if arguments.command in PLANNED:
        edition = edition_of(stem, first_seeds(declaration, arguments.seeds), arguments.size or "full")
        settings = parse_overrides(arguments.settings)
        if unknown := {key: value for key, value in settings.items() if key not in known_keys()}:
            build(unknown)
        edition.check(settings)
        if arguments.command == "retry":
            agenda.check_started(study_name(stem, arguments.size or "full"), arguments)
    elif arguments.command in RECORDED:
        agenda.recorded_folder(arguments)


def _hold_against(arguments: argparse.Namespace, stem: str) -> None:
    """Refuse another declaration's folder; keep what of this one was changed since (`drift`) for the command, or say it."""
    _, declaration = agenda.declared(arguments.name)
    plans = arguments.command in PLANNED
    size = arguments.size or "full"
    if not plans and size in ("full", *declaration.sizes):
        recorded = agenda.recorded_sizes(arguments.out, stem, declaration)
        if arguments.size is None and arguments.command == "verify":  # of several sizes the first
            size = "full" if "full" in recorded else next(iter(recorded), "full")
        else:
            size = agenda.meant_size(stem, declaration, arguments.out, arguments.size)
    study = study_name(stem, size)
    check_owner(arguments, study)
    if not (arguments.out / study).is_dir():
        if arguments.command in ("run", "plan") and (found := left_behind(arguments, study)):
            say(f"note: {found}; else they are trained anew", file=sys.stderr)
        return
    if arguments.command in ("run", "plan", "retry", "cancel"):
        return  # go by what the declaration says now, or by none
    arguments.drift = one_line(drift(arguments, size))  # with labels and questions of whoever wrote them
    if arguments.drift and arguments.command not in SHOWN:
        say(f"note: {arguments.drift}", file=sys.stderr)


def _check_folders(arguments: argparse.Namespace) -> None:
    """Refuse a file in the place of a folder that is written into when the work is done."""
    for option in ("to", "files", *(("out",) if arguments.command in WRITERS else ())):
        folder = getattr(arguments, option, None)
        if folder is None:
            continue
        if option == "to" and arguments.command == "bench":  # a file of results, which may be there from before
            folder = folder.parent
        there = next(place for place in (folder, *folder.parents) if place.is_symlink() or place.exists())
        if not there.is_dir():
            raise UserError(f"--{option} {folder}: {there} is no folder: name another, or move it away")
