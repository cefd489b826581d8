"""Mistakes that the command line, a declaration and the folder of runs show, refused before a command's own imports."""

import argparse
from pathlib import Path

from ablations.cli import agenda
from core.config import known_keys
from core.settings import build, parse_overrides
from sweeps.checks import check, edition_of
from sweeps.spec import Ablation, study_name

PLANNED = ("plan", "run", "retry", "decode")  # make a plan, with settings
RECORDED = ("report", "confirm", "export")  # judge what is recorded
STARTED = ("status", "cancel", "sync")  # follow a sweep or a search that has been started
OF_FOLDERS = ("export", "probe")  # take a run's folder as well


def refuse_early(arguments: argparse.Namespace) -> None:
    """Raise the UserError that the command itself would raise, seconds earlier. The command checks everything again."""
    name = getattr(arguments, "name", None)
    if name is None or arguments.command == "data" or (arguments.command in OF_FOLDERS and Path(name).is_dir()):
        return
    stem, declaration = agenda.declared(name)
    if arguments.command in STARTED or (arguments.command == "dashboard" and not arguments.wandb):
        agenda.started_folder(arguments)
    if not isinstance(declaration, Ablation):
        return
    if arguments.command in PLANNED:
        edition = edition_of(stem, agenda.with_seeds(declaration, arguments.seeds), arguments.size or "full")
        settings = parse_overrides(arguments.settings)
        if unknown := {key: value for key, value in settings.items() if key not in known_keys()}:
            build(unknown)
        check(edition, settings)
        if arguments.command == "retry":
            agenda.check_started(study_name(stem, arguments.size or "full"), arguments.out)
    elif arguments.command in RECORDED:
        agenda.recorded_folder(arguments)
