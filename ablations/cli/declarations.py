"""Comparison of a declaration with the design that a folder of runs was last run with: its owner, and what changed."""

import argparse
import json
import shlex
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ablations.cli import studies as agenda
from core.errors import UserError
from core.records import design as designs
from core.records import record as records
from core.records.design import Design, DesignArm, SearchDesign, StudyDesign
from core.records.design_changes import changes
from core.records.provenance import code
from core.records.record import OutOfReachError, UnreadableRecordError
from core.records.run_folders import list_runs
from core.records.versions import mixture
from core.runtime.json_files import DamagedFileError
from core.runtime.printable import one_line, say
from sweeps.search.spec import Search
from sweeps.studies.ablation import Ablation
from sweeps.studies.plan import Plan
from sweeps.studies.resolve import outline
from sweeps.studies.study import CONFIRM, Study, first_seeds, study_name


def check_owner(arguments: argparse.Namespace, study: str) -> None:
    """Refuse a folder of runs that another declaration of the same name made."""
    design = _design(arguments.out / study)
    if design is None or (theirs := _declared_in(design)) is None:
        return
    mine = agenda.declared_in(arguments.name)
    if theirs == mine or _is_same(theirs, mine, design, arguments.name):
        return
    holds = f"{arguments.out / study} holds the runs of {theirs}"
    if theirs not in agenda.discover() and not Path(theirs).exists():  # moved and edited, or another one: who can tell
        raise UserError(
            f"{holds}, which is gone, and of another question ({design.question!r}): where {mine} is that declaration, "
            f"run it with that question first, then change it; else give it an --out of its own"
        )
    raise UserError(
        f"{holds}, another declaration of the same name than {mine}: rename one of the files, or give each an --out of its "
        "own"
    )


def drift(arguments: argparse.Namespace, size: str) -> str:
    """The differences between a declaration and its recorded design, and the command to type; empty if there are none."""
    name, declaration = agenda.declared(arguments.name)
    folder = arguments.out / study_name(name, size)
    design = _design(folder)
    if not isinstance(design, Design) or not isinstance(declaration, Ablation):
        return _searched(design, declaration, arguments, size)
    try:
        said, trains = _changes(name, declaration, size, design, folder)
    except UserError as error:
        return f"the declaration no longer gives the design of these runs: {error}"
    if not said:
        return ""
    command = _command(arguments, size, design)
    does = "trains what is new" if trains else "takes this over"
    return f"the declaration was changed since these runs were planned: {'; '.join(said)}: `{command}` {does}"


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
    name, declaration = agenda.declared(arguments.name)
    for path in sorted(arguments.out.glob(f"*/{designs.FILE_NAME}")):
        design = _design(path.parent)
        if design is None or path.parent.name == study or design.question != declaration.question:
            continue
        theirs = _declared_in(design)
        if theirs is None or theirs == agenda.declared_in(arguments.name) or Path(theirs).exists():
            continue
        if theirs in agenda.discover() or design.size.endswith(CONFIRM):
            continue
        target = arguments.out / study_name(name, design.size)
        move = shlex.join(["mv", str(path.parent), str(target)])
        again = agenda.command("run", arguments, design.size)
        where = f"runs of this question lie in {path.parent}, declared in {theirs}, which is gone"
        return f"{where}: `{move}`, then `{again}` takes them over"
    return ""


def _design(folder: Path) -> StudyDesign | None:
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
        return bool(design.question == agenda.declared(name)[1].question)


def _changes(name: str, ablation: Ablation, size: str, design: Design, folder: Path) -> tuple[list[str], bool]:
    """Differences in words, and whether they need runs."""
    words = shlex.split(design.command)
    given = int(words[words.index("--seeds") + 1]) if "--seeds" in words and design.confirms is None else None
    base = size.removesuffix(f".{CONFIRM}") if design.confirms is not None else size
    now, configs = outline(name, first_seeds(ablation, given), size=base, overrides=design.overrides)
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
            record = records.read(path)
        except (FileNotFoundError, UnreadableRecordError, OutOfReachError):
            continue
        if record.arm_hash == arm.hash:
            return record.config
    return {}


def _command(arguments: argparse.Namespace, size: str, design: StudyDesign) -> str:
    """The command that the design was last run with, for the declaration by the name that it has now."""
    words = shlex.split(design.command)
    if len(words) < 3:
        return agenda.command("run", arguments, size)
    return shlex.join([*words[:2], arguments.name, *words[3:]])


def _searched(design: StudyDesign | None, declaration: Study, arguments: argparse.Namespace, size: str) -> str:
    """The same of a search: its space, budget and seeds, as far as the design says them."""
    if not isinstance(design, SearchDesign) or not isinstance(declaration, Search):
        return ""
    from sweeps.search.spec import to_json  # what only searches need

    try:
        now = to_json(declaration.sized(size))
    except KeyError:
        return ""
    was = design.declared
    skipped = {"sizes"} | ({"seeds"} if "--seeds" in shlex.split(design.command) else set())
    said = [key for key in now if key in was and key not in skipped and was[key] != _plain(now[key])]
    if not said:
        return ""
    command = _command(arguments, size, design)
    return f"the declaration was changed since this search was planned: {', '.join(said)}: `{command}` goes by what it is now"


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value))
