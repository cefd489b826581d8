"""Comparison of a declaration with the design that a folder of runs was last run with: its owner, and what changed."""

import argparse
import shlex
import sys
from pathlib import Path

from ablations.cli import studies
from core.errors import UserError
from core.records import designs
from core.records.designs import StudyDesign
from core.records.provenance import code, mixture
from core.records.study_history import changes
from core.runtime.json_files import DamagedFileError
from core.runtime.printable import one_line, say
from sweeps.studies.plan import Plan
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


def say_before(folder: Path, plan: Plan) -> None:
    """Say what a plan's runs won't show: that the design was another, records that are set aside, other code that trained."""
    from analysis.study import Study  # numpy, which mistakes are refused without

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
    """The name on the agenda, or the file, that a design was declared in; of older ones by the command. None: not known."""
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
