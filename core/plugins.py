"""Components of users' own files and packages: found, hashed, imported once, and copied beside the runs that used them.

A plugin is written `PATH#HASH`: a file or a package's folder, and the first digits of the hash of its source. A run's config
lists the plugins that it needs, so another version of their source is another run. Code is imported only where this process,
or this user before, was asked to run it: a folder of runs that came from elsewhere runs none of its code.
"""

import ast
import hashlib
import importlib
import importlib.util
import os
import shutil
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from core.errors import UserError

DIGITS = 12
STUDIES = ("ablation", "search")  # variables that a file declares a study by
GROUP = "ablate"  # of entry points
FOLDER = "code"  # of a study's folder: a copy of each plugin
COPIES = "ABLATE_CODE"  # folders of copies, for processes that a launcher starts
TRUSTED = "ABLATE_TRUSTED_CODE"  # hashes that a launcher's processes may import
KEYRING = "trusted_code"  # hashes that this user ran before

_modules: dict[str, ModuleType] = {}  # by hash


class Plugin(NamedTuple):
    """A file or a package's folder, and the hash of its source."""

    path: Path
    sha256: str

    def __str__(self) -> str:
        return f"{self.path}#{self.sha256}"

    @property
    def label(self) -> str:
        """Its name and hash, wherever it lies: what identifies it in a run's hash."""
        return f"{self.path.name}#{self.sha256}"

    @classmethod
    def parse(cls, written: str) -> "Plugin":
        """The plugin that `PATH#HASH` names; of `PATH` alone, as it is now. Raises UserError where there is none."""
        path, separator, sha256 = written.partition("#")
        return cls(Path(path).absolute(), sha256) if separator else plugin_at(Path(path))


def plugin_at(path: Path) -> Plugin:
    """A file or a package's folder with the hash of its source as it is now. Raises UserError where it can't be read."""
    path = path.absolute()
    try:
        return Plugin(path, digest(path))
    except OSError as error:
        raise UserError(f"plugins: {path} can't be read: {error.strerror}") from None


def digest(path: Path) -> str:
    """Hash of a file, or of all Python files of a folder with their places. Raises OSError.

    Of a file that declares a study, the declaration doesn't count: another question or more seeds leave the runs that there
    are as they are.
    """
    found = hashlib.sha256()
    if path.is_file():
        found.update(_without_study(_content(path)))
    else:
        files = sorted(path.rglob("*.py"))
        if not files:
            raise FileNotFoundError(2, "no file or package of Python is there", str(path))
        for file in files:
            content = _content(file)
            found.update(f"{file.relative_to(path).as_posix()} {len(content)}\n".encode() + content)
    return found.hexdigest()[:DIGITS]


def _without_study(content: bytes) -> bytes:
    """A module's source without the statements that declare a study."""
    try:
        statements = ast.parse(content).body
    except (SyntaxError, ValueError):
        return content
    lines = content.splitlines(keepends=True)
    for each in reversed(statements):
        if isinstance(each, ast.Assign) and any(isinstance(to, ast.Name) and to.id in STUDIES for to in each.targets):
            del lines[each.lineno - 1 : each.end_lineno]
    return b"".join(lines)


def _content(path: Path) -> bytes:
    return path.read_bytes().replace(b"\r\n", b"\n")  # version control may change line ends


def named(name: str, beside: Path) -> Plugin:
    """A plugin as a declaration names it: a path, from the declaration's folder on, or an importable package.

    Raises UserError where neither is there.
    """
    path = beside / name
    if path.exists():
        return plugin_at(path)
    if "/" not in name and not name.endswith(".py"):
        for folder in (str(beside), None):
            spec = _spec(name, folder)
            if spec is not None and spec.origin not in (None, "built-in", "frozen"):
                origin = Path(str(spec.origin))
                return plugin_at(origin.parent if origin.name == "__init__.py" else origin)
    raise UserError(f"plugins: '{name}' is neither a file or folder in {beside} nor a package that can be imported")


def _spec(name: str, folder: str | None) -> importlib.machinery.ModuleSpec | None:
    try:
        if folder is None:
            return importlib.util.find_spec(name)
        return importlib.machinery.PathFinder.find_spec(name, [folder])
    except (ImportError, ValueError):
        return None


def require(written: Iterable[str]) -> tuple[str, ...]:
    """Import plugins that a config lists, each once; returns them with their hashes.

    Raises UserError, naming the plugin, for one that isn't there as it was, can't be imported, or isn't trusted.
    """
    plugins = [Plugin.parse(each) for each in written]
    for plugin in plugins:
        if plugin.sha256 not in _modules:
            _import(_located(plugin))
    return tuple(str(plugin) for plugin in plugins)


def run(plugin: Plugin) -> ModuleType:
    """Import a plugin that the user asks for, and trust it from now on."""
    trust([plugin])
    return _modules.get(plugin.sha256) or _import(plugin)


def keep(plugin: Plugin, module: ModuleType) -> None:
    """Note that a plugin's source was executed as a module already, such as a declaration's own file."""
    trust([plugin])
    _modules[plugin.sha256] = module


def installed(known: Callable[[], bool]) -> list[str]:
    """The plugin among installed packages that makes something known, as a list of one or none.

    Packages name their modules as entry points of the group `ablate`. They are imported one after another until `known`.
    """
    for entry in entry_points(group=GROUP):
        module = importlib.import_module(entry.module)
        if known():
            origin = Path(str(module.__file__))
            plugin = plugin_at(_package_of(entry.module, origin))
            keep(plugin, module)
            return [str(plugin)]
    return []


def _package_of(module: str, origin: Path) -> Path:
    """The folder of the outermost package of a module, or the module's own file."""
    levels = module.count(".") + (origin.name == "__init__.py")
    return origin.parents[levels - 1] if levels else origin


def _located(plugin: Plugin) -> Plugin:
    """The plugin where its source is as it was: a launcher's copy, else its place."""
    if plugin.sha256 not in _trusted():
        raise UserError(
            f"plugins: these runs use the code of {plugin.path.name} (hash {plugin.sha256}), which you haven't run before: "
            f"look at it, then name it in {TRUSTED}={plugin.sha256} to let it be imported"
        )
    folders = [Path(each) for each in os.environ.get(COPIES, "").split(os.pathsep) if each]
    places = [folder / plugin.label.replace("#", "-") / plugin.path.name for folder in folders] + [plugin.path]
    for path in places:
        with suppress(OSError):
            if digest(path) == plugin.sha256:
                return Plugin(path, plugin.sha256)
    was = "was changed since these runs were planned" if plugin.path.exists() else "isn't there"
    raise UserError(f"plugins: {plugin.path} {was} (hash {plugin.sha256})")


def _import(plugin: Plugin) -> ModuleType:
    path, name = plugin.path, plugin.path.name
    try:
        if path.is_dir():
            if str(path.parent) not in sys.path:
                sys.path.append(str(path.parent))
            module = importlib.import_module(name)
            if Path(str(module.__file__)).parent != path:
                raise UserError(f"plugins: {name} is another package than {path} here: {module.__file__}")
        else:
            module = _execute(path, f"plugin_{path.stem}_{plugin.sha256}")
    except UserError as error:
        raise UserError(
            f"plugins: {name}{line_of(path, error)}: {error}".replace("plugins: plugins", "plugins")
        ) from error
    except (Exception, SystemExit) as error:  # whatever a user's file may raise, said with its place
        said = str(error).splitlines()[0] if str(error) else ""
        raise UserError(
            f"plugins: {name} can't be imported{line_of(path, error)}: {type(error).__name__}: {said}"
        ) from error
    _modules[plugin.sha256] = module
    return module


def _execute(path: Path, name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # before: dataclasses and pickles look their module up
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def line_of(path: Path, error: BaseException) -> str:
    """The last line of a file, or of a folder's files, that an error came through: ", line 3"; empty where none."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename).is_relative_to(path)]
    if not frames:
        return ""
    inside = f" of {Path(frames[-1].filename).relative_to(path)}" if path.is_dir() else ""
    return f", line {frames[-1].lineno}{inside}"


def copy(written: Sequence[str], folder: Path) -> None:
    """Copy plugins into a study's folder, each version beside the others: `code/NAME-HASH/NAME`."""
    for plugin in map(Plugin.parse, written):
        home = folder / FOLDER / plugin.label.replace("#", "-")
        if home.exists():
            continue
        source = _located(plugin).path
        partial = home.with_name(f".{home.name}.{os.getpid()}")
        shutil.rmtree(partial, ignore_errors=True)
        if source.is_dir():
            shutil.copytree(
                source, partial / source.name, ignore=lambda _, names: [n for n in names if n == "__pycache__"]
            )
        else:
            partial.mkdir(parents=True)
            shutil.copyfile(source, partial / source.name)
        with suppress(OSError):  # another process was first
            partial.rename(home)
        shutil.rmtree(partial, ignore_errors=True)


def variables(written: Sequence[str], folder: Path) -> dict[str, str]:
    """Environment of processes that train with plugins: where their copies lie, and which may be imported."""
    if not written:
        return {}
    return {COPIES: str((folder / FOLDER).absolute()), TRUSTED: ",".join(Plugin.parse(each).sha256 for each in written)}


def _keyring() -> Path:
    home = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(home) / "ablate" / KEYRING


def _trusted() -> set[str]:
    known = set(os.environ.get(TRUSTED, "").split(","))
    with suppress(OSError, UnicodeDecodeError):
        known |= set(_keyring().read_text(encoding="ascii").split())
    return known


def trust(plugins: Iterable[Plugin]) -> None:
    """Note that this user runs the code of plugins. Where no note can be written, this process alone knows."""
    new = {plugin.sha256 for plugin in plugins} - _trusted()
    if not new:
        return
    os.environ[TRUSTED] = ",".join(filter(None, [os.environ.get(TRUSTED, ""), *sorted(new)]))
    with suppress(OSError):
        _keyring().parent.mkdir(parents=True, exist_ok=True)
        with _keyring().open("a", encoding="ascii") as file:
            file.write("".join(f"{each}\n" for each in sorted(new)))
