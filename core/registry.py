"""Registries: named entries of one sort, such as routers, which a file adds to without any other file being changed.

Entries are light, so that a plan can be checked without torch: where what an entry does needs a heavy library, the entry
names it, "module:attribute", and `load` imports it at its first use.
"""

import difflib
import importlib
import pkgutil
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from typing import Any, ClassVar, Protocol, TypeVar

from core.errors import UserError


class Entry(Protocol):
    """Anything with a name."""

    @property
    def name(self) -> str: ...


E = TypeVar("E", bound=Entry)


class Registry(Mapping[str, E]):
    """Entries by name, in the order in which they were added.

    field: what an error calls a name, such as "model.router.kind". folder: a package whose modules add entries as they are
    imported. A light folder's modules are all imported at the first look-up. Of another, the module of a kind's name is
    imported when that kind is looked up and nobody has added it. Looking up an unknown name raises UserError.
    """

    additions: ClassVar[int] = 0  # to all registries, so that who runs a file sees whether it added something

    def __init__(self, field: str, entries: Iterable[E] = (), *, folder: str = "", light: bool = True) -> None:
        self.field, self.folder, self.light = field, folder, light
        self._entries = {entry.name: entry for entry in entries}
        self._unread = bool(folder)
        self.version = 0  # another one after each entry that is added

    def add(self, entry: E) -> E:
        """Add an entry; one that the same code adds again replaces its former self. Raises UserError for another's name."""
        former = self._entries.get(entry.name)
        if former is not None and _origin(former) != _origin(entry):
            raise UserError(f"{self.field}: there is a '{entry.name}' already; register it under another name")
        self._entries[entry.name] = entry
        Registry.additions += 1
        self.version = Registry.additions
        return entry

    def __getitem__(self, name: str) -> E:
        if name not in self:
            raise UserError(f"{self.field}: unknown '{name}': {nearest(name, self)}")
        return self._entries[name]

    def __contains__(self, name: object) -> bool:
        if not isinstance(name, str):
            return False
        if name not in self._read() and not self.light and name in self._modules():
            importlib.import_module(f"{self.folder}.{name}")
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter([*self._read(), *(() if self.light else self._modules())])

    def __len__(self) -> int:
        return len(list(iter(self)))

    def entries(self) -> tuple[E, ...]:
        """The entries that are known, without importing more."""
        return tuple(self._read().values())

    def _read(self) -> Mapping[str, E]:
        if self._unread and self.light:
            self._unread = False  # before: the modules look entries up themselves
            try:
                for name in module_names(self.folder):
                    importlib.import_module(f"{self.folder}.{name}")
            except BaseException:
                self._unread = True  # the next look-up says it again, rather than know of a part
                raise
        return self._entries

    def _modules(self) -> list[str]:
        """Modules of the folder that hold no entry's implementation so far: each adds the kind that it is named after."""
        known = {str(getattr(entry, "implementation", "")).partition(":")[0] for entry in self._entries.values()}
        names = module_names(self.folder) if self.folder else []
        return [name for name in names if f"{self.folder}.{name}" not in known and name not in self._entries]


def _origin(entry: Entry) -> tuple[object, object]:
    """Module and name of an entry's implementation."""
    implementation = getattr(entry, "implementation", None)
    return getattr(implementation, "__module__", implementation), getattr(implementation, "__qualname__", None)


@cache
def module_names(package: str) -> list[str]:
    """The modules of a package, by name, without importing them."""
    return sorted(module.name for module in pkgutil.iter_modules(importlib.import_module(package).__path__))


def load(implementation: Any) -> Any:
    """An entry's implementation: what it names as "module:attribute", imported; anything else as it is."""
    if not isinstance(implementation, str):
        return implementation
    module, _, attribute = implementation.partition(":")
    return getattr(importlib.import_module(module), attribute)


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint for an error: the known names that look most like this one, or all of them."""
    known, last = list(known), name.rsplit(".", 1)[-1]
    parts = {entry.rsplit(sep, 1)[-1]: entry for sep in ("/", ".") for entry in known}
    near = [entry for entry in known if "." in entry and entry.rsplit(".", 1)[-1] == last]
    near = near or difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    near = near or [parts[part] for part in difflib.get_close_matches(last, parts, n=3, cutoff=0.6)]
    near = near or [entry for entry in known if name and name in entry]
    return f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(known)}"
