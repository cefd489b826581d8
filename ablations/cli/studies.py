"""Declarations by name or path: every file in `ablations/` declares a study."""

import argparse
import contextlib
import difflib
import importlib.util
import re
import shlex
import sys
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import sweeps.spec
from core import plugins
from core.errors import UserError
from core.registry import Registry, nearest
from sweeps.studies.ablation import Ablation
from sweeps.studies.study import STUDY_KINDS, Study, confirm_size, first_seeds, study_name

FOLDER = Path(__file__).resolve().parent.parent
# Modules that declarations of earlier versions may import.
MOVED = {
    "core.presets": "sweeps.spec",
    "core.recipes": "sweeps.spec",
    "core.settings": "core.config.loading",
    "sweeps.transfer": "sweeps.export.transfer",
}


def discover() -> dict[str, Path]:
    """Names and files of every declaration in `ablations/`, in order of name; files are looked at, not run."""
    return {path.stem: path for path in sorted(FOLDER.glob("*.py")) if not path.stem.startswith(("_", "."))}


def resolve(name: str) -> tuple[str, Ablation]:
    """An ablation by its name or path. Raises UserError as `declared` does, and for another kind of study."""
    stem, found = declared_with_arms(name)
    assert isinstance(found, Ablation)
    return stem, found


def declared_with_arms(name: str) -> tuple[str, Study]:
    """A declaration whose designs have arms, each trained on seeds. Raises UserError as `declared` does, and for others."""
    stem, found = declared(name)
    if not STUDY_KINDS[found.kind].has_arms:
        raise UserError(f"{name} is a {found.kind}; this is for ablations")
    return stem, found


def declared(name: str) -> tuple[str, Study]:
    """A declaration by its name in `ablations/`, or by the path of a .py file anywhere.

    Raises UserError when there is none, or when the file declares neither `ablation = Ablation(...)` nor `search =
    Search(...)`.
    """
    if name.endswith(".py"):
        path = Path(name)
        if not path.is_file():
            raise UserError(f"no such declaration file: {name}")
        twin = discover().get(path.stem)
        if twin is not None and not twin.samefile(path):
            raise UserError(
                f"{name}: a study in ablations/ is called '{path.stem}' already; give the file another name"
            )
        return path.stem, _load(path)
    studies = discover()
    if name in studies:
        return name, _load(studies[name])
    if Path(f"{name}.py").is_file():
        raise UserError(f"no study in ablations/ is called '{name}', but a file {name}.py is here: write {name}.py")
    if Path(name).exists():
        kind = "folder" if Path(name).is_dir() else "file"
        raise UserError(
            f"{name} is a {kind} here, and no declaration: give the name of a study in ablations/, or a .py file"
        )
    if "/" in name:
        raise UserError(f"{name}: there is no such folder or declaration file (no study's name has a '/')")
    near = difflib.get_close_matches(name, studies, n=3) or list(studies)
    raise UserError(f"unknown ablation '{name}': did you mean {' or '.join(near)}?")


def declared_in(name: str) -> str:
    """The place of a declaration: its name if it is in `ablations/`, else the absolute path of its file."""
    return str(Path(name).resolve()) if name.endswith(".py") and Path(name).stem not in discover() else Path(name).stem


def command(verb: str, arguments: argparse.Namespace, size: str | None = None, more: Sequence[str] = ()) -> str:
    """The command that does something else with the same declaration, in the same size and folder."""
    size = size or arguments.size or "full"
    words = ["ablate", verb, arguments.name, *([] if size == "full" else ["--size", size]), *more]
    return shlex.join([*words, *([] if arguments.out == Path("runs") else ["--out", str(arguments.out)])])


def run_command(arguments: argparse.Namespace, size: str) -> str:
    """`ablate run` as it was typed: a declaration given by its path isn't known by its name alone."""
    more = [*arguments.settings, *(["--seeds", str(arguments.seeds)] if arguments.seeds else [])]
    more += ["--exploratory"] if getattr(arguments, "exploratory", False) else []
    if getattr(arguments, "until_decided", False):
        more += ["--until-decided", *(["--block", str(arguments.block)] if arguments.block else [])]
    return command("run", arguments, size, more)


def make_plan(arguments: argparse.Namespace) -> Any:
    """The plan of NAME by --size, --seeds and the settings, as its kind resolves it, with the command that runs it."""
    name, study = declared(arguments.name)
    study = first_seeds(study, arguments.seeds)
    plan = STUDY_KINDS[study.kind].plan(name, study, size=arguments.size or "full", overrides=arguments.settings)
    command = run_command(arguments, plan.size)
    return replace(plan, design=replace(plan.design, command=command, declared_in=declared_in(arguments.name)))


def recorded_sizes(out: Path, name: str, study: Study) -> Mapping[str, Path]:
    """The sizes of a declaration that have a folder of runs below `out`, their confirmations after them."""
    sizes = ("full", *study.sizes)
    folders = {size: out / study_name(name, size) for size in (*sizes, *map(confirm_size, sizes))}
    return {size: folder for size, folder in folders.items() if folder.is_dir()}


def meant_size(name: str, study: Study, out: Path, wanted: str | None, *, first_of_several: bool = False) -> str:
    """The size that was named, else the full one where it was run, else the only one that was.

    Raises UserError for an unknown size, and where several were run, unless the first of them will do.
    """
    sizes = ("full", *study.sizes)
    recorded = [size for size in recorded_sizes(out, name, study) if size in sizes]
    size = wanted or ("full" if "full" in recorded else next(iter(recorded), "full"))
    if size not in (*sizes, *map(confirm_size, sizes)):
        raise UserError(f"unknown size '{size}' of '{name}': known: {', '.join(sizes)}")
    if wanted is None and len(recorded) > 1 and "full" not in recorded and not first_of_several:
        raise UserError(f"{name} was run in several sizes: add --size {' or --size '.join(recorded)}")
    return size


def _load(path: Path) -> Study:
    spec = importlib.util.spec_from_file_location(f"declared_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name], before = module, Registry.additions  # dataclasses of a file look their module up
    try:
        with contextlib.redirect_stdout(sys.stderr):  # what it prints is none of a command's answer
            spec.loader.exec_module(module)
    except UserError as error:
        raise UserError(f"{path.name}{_place(path, error)}: {error}") from error
    except (Exception, SystemExit) as error:  # whatever a user's file may raise, said with its place
        words = str(error).splitlines()[0] if str(error) else ""
        moved = MOVED.get(error.name or "") if isinstance(error, ModuleNotFoundError) else None
        hint = f": what it had is in {moved} now" if moved else _nearest_field(words)
        line = f"{type(error).__name__}: {words}{hint}".removesuffix(": ")
        raise UserError(f"{path.name} can't be read{_place(path, error)}: {line}") from error
    found = [
        getattr(module, kind.variable)
        for kind in STUDY_KINDS.entries()
        if isinstance(getattr(module, kind.variable, None), kind.implementation)
    ]
    if len(found) != 1:
        raise UserError(
            f"{path.name} must declare `ablation = Ablation(...)` or `search = Search(...)` (both from sweeps.spec)"
            + (", not both" if found else "")
        )
    return _with_plugins(found[0], path, module, registers=Registry.additions > before)


def _with_plugins(study: Study, path: Path, module: ModuleType, *, registers: bool) -> Study:
    """The declaration with the code that its runs need: the plugins that it names, and its own file where that registers
    components."""
    own = plugins.plugin_at(path)
    if registers:
        plugins.keep(own, module)
    named = [plugins.named(name, path.absolute().parent) for name in study.plugins]
    for plugin in named:
        plugins.run(plugin)
    needed = [str(plugin) for plugin in ([own] if registers else []) + named]
    changed: Any = replace(study, settings={**study.settings, "plugins": needed}) if needed else study  # type: ignore[type-var]
    return changed


def _place(path: Path, error: BaseException) -> str:
    """The line of a declaration at which an error came up; a SyntaxError names it itself."""
    lines = [
        frame.lineno for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename) == path.absolute()
    ]
    return f", line {lines[-1]}" if lines else ""


def _nearest_field(words: str) -> str:
    found = re.match(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'", words)
    kind = getattr(sweeps.spec, found[1], None) if found else None
    return f": {nearest(found[2], [entry.name for entry in fields(kind)])}" if found and kind else ""
