"""A study's records, as commands judge them: loaded, and noted where a plan or a declaration has changed since."""

import argparse
import sys
from pathlib import Path

from ablations.cli import studies
from ablations.cli.declarations import nothing_recorded, recorded_folder
from analysis.study import Study
from core.records import designs
from core.records.designs import StudyDesign
from core.records.provenance import code, mixture
from core.records.study_history import changes
from core.runtime.printable import one_line, say
from sweeps.studies.plan import Plan


def load_study(arguments: argparse.Namespace) -> tuple[Study, Path]:
    """Records of the named ablation in the chosen size, and its folder. Raises UserError where nothing is."""
    studies.declared_with_arms(arguments.name)
    size, folder = recorded_folder(arguments)
    study = Study.load(folder)
    if study is None:
        raise nothing_recorded(arguments, Path(arguments.name).stem, size)
    return study, folder


def say_before(folder: Path, plan: Plan) -> None:
    """Say what a plan's runs won't show: that the design was another, records that are set aside, other code that trained."""
    study = Study.load(folder, plan.design) if folder.is_dir() else None
    if study is None:
        return
    said = [f"{count} records are set aside: {reason}" for reason, count in study.set_aside.items()]
    try:
        if changed := changes(StudyDesign.read(folder / designs.FILE_NAME), plan.design):
            said.insert(0, f"the design was changed since it was last run: {'; '.join(changed)}")
    except (OSError, ValueError):  # damaged or gone: it is written anew
        pass
    finished = [record for record in study.cells.values() if record.status == "complete"]
    if mixed := mixture(finished, study.missing, code()):
        said.append(f"{mixed}. `{plan.design.command} --out ANOTHER` trains all by one; else the verdict says so")
    for each in said:
        say(f"note: {one_line(each)}", file=sys.stderr)


def drift_note(arguments: argparse.Namespace) -> list[str]:
    """A sentence on what was changed of the declaration since it was run; none where nothing was."""
    said = getattr(arguments, "drift", "")
    return [f"{said[0].upper()}{said[1:]}."] if said else []
