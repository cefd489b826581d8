"""Text from files, declarations and records made safe for a terminal: nothing in it moves the cursor, changes
colours or the direction of reading, or fakes a line."""

import logging
import sys
from typing import TextIO

LONGEST = 2000  # characters of a line


def clean(text: str) -> str:
    """The same lines, with every control code escaped."""
    return _escaped(text, kept="\n\t")


def one_line(text: object, longest: int = LONGEST) -> str:
    """A value as one line: control codes and line breaks are escaped, and what is very long is cut."""
    said = str(text)
    said = said if len(said) <= longest else f"{said[:longest]} ..."
    return said if said.isprintable() else _escaped(said)


def say(text: str, *, file: TextIO | None = None, end: str = "\n") -> None:
    """Print a line, or several of our own, for people, at once."""
    print(clean(text), file=file or sys.stdout, end=end, flush=True)


def log_to_stderr() -> None:
    """A process's log: lines on stderr, in which only our own line breaks are any."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Formatter("%(asctime)s %(levelname)s %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])


class _Formatter(logging.Formatter):
    """A message is one line; a traceback, whose lines are its own, keeps them."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = one_line(record.message, 10 * LONGEST)
        return super().formatMessage(record)

    def formatException(self, ei: object) -> str:
        return clean(super().formatException(ei))  # type: ignore[arg-type]


def _escaped(text: str, kept: str = "") -> str:
    return "".join(c if c.isprintable() or c in kept else c.encode("unicode_escape").decode() for c in text)
