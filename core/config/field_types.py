"""Type checks of a declaration's fields, with one clear line per mistake.

Not by msgspec: it takes a set for a list, and its words aren't those of Python, in which declarations are written. Nor does
it read configs: OmegaConf merges them by key and takes the text 1e-3 for a number (core.config.loading).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from core.errors import UserError
from core.runtime.printable import one_line

LONGEST = 80  # characters of a value in a complaint
ONE = {int: "a whole number", float: "a number", str: "text", bool: "True or False", NoneType: "None"}
SEVERAL: dict[Any, str] = {int: "whole numbers", float: "numbers", str: "texts", tuple: "tuples", Mapping: "mappings"}
SEVERAL |= dict.fromkeys((Any, Union, UnionType), "values")


def check_fields(declared: Any, prefix: str = "", *, skip: Sequence[str] = (), endless: Sequence[str] = ()) -> None:
    """Refuse a dataclass whose fields hold other types than declared; lists become tuples where those are declared.

    prefix: before a field's name, such as "sizes: ". skip: fields that are checked elsewhere. endless: fields whose numbers
    may be infinite. Raises UserError.
    """
    for entry in fields(declared):
        value = getattr(declared, entry.name)
        if entry.name not in skip and not _fits(value, entry.type, endless=entry.name in endless):
            raise UserError(f"{prefix}{entry.name}: {_mistake(entry.name, value, entry.type)}")
        if isinstance(value, list) and any(get_origin(kind) is tuple for kind in _alternatives(entry.type)):
            object.__setattr__(declared, entry.name, tuple(value))


def _alternatives(kind: Any) -> tuple[Any, ...]:
    return get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)


def _fits(value: Any, kind: Any, *, endless: bool = False) -> bool:
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any:
        return True
    if origin in (Union, UnionType):
        return any(_fits(value, one, endless=endless) for one in arguments)
    if origin is Literal:
        return any(type(value) is type(one) and value == one for one in arguments)
    if origin is tuple:
        if not isinstance(value, tuple | list):
            return False
        kinds = arguments[:1] * len(value) if arguments[-1] is Ellipsis else arguments
        return len(kinds) == len(value) and all(map(lambda v, k: _fits(v, k, endless=endless), value, kinds))
    if origin is Sequence:
        return isinstance(value, Sequence) and not isinstance(value, str) and all(_fits(v, arguments[0]) for v in value)
    if origin is Mapping:
        return isinstance(value, Mapping) and all(
            _fits(k, arguments[0]) and _fits(v, arguments[1]) for k, v in value.items()
        )
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and (endless or math.isfinite(value))
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, kind)


def _mistake(name: str, value: Any, kind: Any) -> str:
    shown = one_line(repr(value), LONGEST)
    for one in _alternatives(kind):
        arguments = get_args(one)
        if get_origin(one) is tuple and arguments[-1] is Ellipsis and _fits(value, arguments[0]):
            return f"a tuple of one needs its comma: write {name}=({shown},)"
        if one in (int, float) and isinstance(value, str):
            return f"must be {_described(kind)}, not the text {shown}: leave out its quotes"
        if one is float and isinstance(value, float):
            return f"must be a finite number, not {shown}"
        if get_origin(one) in (tuple, Sequence) and isinstance(value, set | frozenset):
            return f"must be {_described(kind)}, as a set has no order: write a tuple instead of {shown}"
    return f"must be {_described(kind)}, not {shown}"


def _described(kind: Any) -> str:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return " or ".join(map(_described, arguments))
    if origin is Literal:
        return f"one of {', '.join(map(repr, arguments))}"
    if origin is tuple:
        inner = _plural(arguments[0]) if arguments[-1] is Ellipsis else " and ".join(map(_described, arguments))
        return f"a tuple of {inner}"
    if origin is Sequence:
        return f"a list of {_plural(arguments[0])}"
    if origin is Mapping:
        return f"a mapping of names to {_plural(arguments[1])}, such as {{...: ...}}"
    return ONE.get(kind, f"{getattr(kind, '__name__', kind)}(...)")


def _plural(kind: Any) -> str:
    return SEVERAL.get(get_origin(kind) or kind, f"{getattr(kind, '__name__', kind)}(...)")
