"""State of the live page: sections of JSON, each with the revision at which it last changed."""

import json
import math
import secrets
import threading
from collections.abc import Mapping
from typing import Any


class PageState:
    """Sections by name. A reader that knows one revision is given the sections that changed since.

    A revision is "<name>-<number>": one of another page, of a command that was started again, counts for nothing.
    """

    def __init__(self) -> None:
        self._name = secrets.token_hex(4)
        self._lock = threading.Lock()
        self._sections: dict[str, tuple[int, str]] = {}
        self._number = 0

    def put(self, name: str, content: Any) -> None:
        """Set a section; nothing where it is as it was. Floats get six digits; those that aren't finite become null."""
        text = json.dumps(_plain(content), allow_nan=False, separators=(",", ":"))
        with self._lock:
            if name not in self._sections or self._sections[name][1] != text:
                self._number += 1
                self._sections[name] = (self._number, text)

    @property
    def revision(self) -> str:
        return f"{self._name}-{self._number}"

    def since(self, revision: str) -> tuple[str, bytes]:
        """The revision now, and as JSON what changed since another: {"revision", "sections"}."""
        name, _, number = revision.partition("-")
        known = int(number) if name == self._name and number.isdigit() else 0
        with self._lock:
            now = self.revision
            parts = [f'"{name}":{text}' for name, (at, text) in self._sections.items() if at > known]
        return now, f'{{"revision":"{now}","sections":{{{",".join(parts)}}}}}'.encode()


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return value
