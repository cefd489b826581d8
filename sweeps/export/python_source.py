"""Python source of nested calls, for trainers that are configured in Python."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


class Name(str):
    """A name, rather than a text."""


@dataclass(frozen=True)
class Call:
    """A call with keyword arguments."""

    function: str
    arguments: Mapping[str, Any]


def source(value: Any, indent: int = 0) -> str:
    """The value as source: a call has a line for each argument."""
    inner, outer = " " * (indent + 4), " " * indent
    if isinstance(value, Call):
        lines = [f"{inner}{name}={source(each, indent + 4)},\n" for name, each in value.arguments.items()]
        return f"{value.function}(\n{''.join(lines)}{outer})" if lines else f"{value.function}()"
    if isinstance(value, Name):
        return str(value)
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key!r}: {source(each, indent)}' for key, each in value.items())}}}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return f"[{', '.join(source(each, indent) for each in value)}]"
    return repr(value)


def calls(content: Mapping[str, Any], functions: Mapping[str, str], path: str) -> Call:
    """Nested mappings as calls. functions: of each path; path: of the content, with dots."""
    arguments = {
        name: calls(each, functions, f"{path}.{name}") if f"{path}.{name}" in functions else each
        for name, each in content.items()
    }
    return Call(functions[path], arguments)
