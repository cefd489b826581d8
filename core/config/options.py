"""Options: settings of a kind that is registered with a settings dataclass, such as `model.router.options.temperature`."""

from collections.abc import Iterator
from dataclasses import asdict, fields
from typing import Any

from core.config.field_types import check_fields
from core.errors import UserError
from core.registry import Registry, nearest


class Options(dict[str, Any]):
    """Values by name: hashable, as configs are, and None for a name that the kind doesn't have."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(tuple(sorted(self.items())))

    def __getattr__(self, name: str) -> Any:
        """A value, as `get_field` reads it."""
        if name.startswith("__"):
            raise AttributeError(name)
        return self.get(name)


def filled(options: dict[str, Any], kind: Any, section: str) -> Options:
    """All options of a kind: those given, and the defaults of its settings' dataclass.

    section: of the config, such as "model.router". Raises UserError for an unknown one, a wrong type and a value that the
    dataclass refuses.
    """
    if kind.settings is None:
        if options:
            raise UserError(
                f"{section}.options.{min(options)} means nothing to {section}.kind={kind.name}: leave it out"
            )
        return Options()
    known = [entry.name for entry in fields(kind.settings)]
    for name in options:
        if name not in known:
            raise UserError(f"{section}.options: {section}.kind={kind.name} has no '{name}': {nearest(name, known)}")
    try:
        settings = kind.settings(**options)
    except TypeError as error:
        raise UserError(f"{section}.options: {error}") from None
    except ValueError as error:
        raise UserError(f"{section}.options: {error}") from None
    check_fields(settings, f"{section}.options.")
    return Options(asdict(settings))


def option_keys(registry: Registry[Any], prefix: str) -> Iterator[tuple[str, Any]]:
    """The keys of all kinds' options, each with its type."""
    for kind in registry.entries():
        for entry in fields(kind.settings) if kind.settings is not None else ():
            yield f"{prefix}options.{entry.name}", entry.type
