"""Checkpoints that can't be gone on from are moved out of the way, never deleted, and a line for the record says why.

checkpoints/set-aside/    what was moved, by its name
              notes.txt   a sentence a line, in the order of what happened: of this run, whoever trained it
"""

import itertools
import logging
import os
from pathlib import Path

from core.records import fencing
from core.runtime.retry import no_space

SET_ASIDE = "set-aside"
NOTES = "notes.txt"

log = logging.getLogger(__name__)


def note(checkpoints: Path, sentence: str) -> None:
    """Have the run's record say something, whoever leaves it."""
    fencing.check(checkpoints)
    sentence = "".join(letter if letter.isprintable() else "?" for letter in sentence)
    log.warning("%s", sentence)
    try:
        (checkpoints / SET_ASIDE).mkdir(parents=True, exist_ok=True)
        with (checkpoints / SET_ASIDE / NOTES).open("a", encoding="utf-8") as file:
            file.write(sentence + "\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        if no_space(error) is None:
            raise
        log.warning("the record will lack this: %s", no_space(error))


def notes(checkpoints: Path) -> list[str]:
    """Notes of a run so far."""
    try:
        lines = (checkpoints / SET_ASIDE / NOTES).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    return [line for line in lines if line.isprintable() and line]


def set_aside(checkpoints: Path, name: str, why: str, holder: Path | None = None) -> None:
    """Move what has that name in `holder` (that of the checkpoints) out of the way, and note it."""
    fencing.check(checkpoints)
    place = checkpoints / SET_ASIDE
    place.mkdir(parents=True, exist_ok=True)
    names = (name if n == 1 else f"{name}-{n}" for n in itertools.count(1))
    target = next(target for target in map(place.joinpath, names) if not os.path.lexists(target))
    ((holder or checkpoints) / name).rename(target)
    note(checkpoints, f"{name} was set aside as {target.relative_to(checkpoints.parent)}: {why}")
