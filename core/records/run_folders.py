"""Listing of the runs in a study's folder: one rule for all readers, whatever links and other files lie there.

A study's, an arm's and a run's folder may be links: people move runs to other disks. A run that is reached by two names
counts once, by the name that goes through fewer links. Below a link nothing deeper than a run's folder is looked at: it may
lead anywhere, such as to the folder that it lies in.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from core.records.run_record import ATTEMPTS, FILE_NAME

RUN = "seed-"  # what a run's folder is called begins so
DEPTH = 2  # of a run's folder below its study's
APART = (ATTEMPTS, "stages")
INNER = ("checkpoints", "decoded", "wandb")  # of a run: many files, and no records


@dataclass(frozen=True)
class Listing:
    """records: files of records, in order of path, whatever they hold. broken: what should be a folder and is none, why."""

    records: tuple[Path, ...]
    broken: tuple[tuple[Path, str], ...]


def list_runs(study: Path, depth: int = DEPTH) -> Listing:
    """List the runs below a study's folder, or with depth 1 below an arm's, without what was set aside and stages."""
    found: dict[tuple[int, int], tuple[int, list[str], Path]] = {}
    broken: list[tuple[Path, str]] = []
    for place, links in _folders(str(study), DEPTH - depth, 0, broken):
        path = os.path.join(place, FILE_NAME)
        if os.path.lexists(path):
            own = os.stat(place)
            each = (links, place.split(os.sep), Path(path))
            key = own.st_dev, own.st_ino
            found[key] = min(found.get(key, each), each)
    listed = sorted(found.values(), key=lambda each: each[1])
    return Listing(tuple(path for _, _, path in listed), tuple(sorted(broken)))


def _folders(place: str, depth: int, links: int, broken: list[tuple[Path, str]]) -> Iterator[tuple[str, int]]:
    """Each folder from this one down, with how many links lead to it."""
    yield place, links
    if links and depth >= DEPTH:
        return
    try:
        with os.scandir(place) as entries:
            listed = sorted(entries, key=lambda entry: entry.name)
    except OSError as error:  # gone since, or somebody else's
        if not isinstance(error, FileNotFoundError):
            broken.append((Path(place), f"can't be looked into: {error.strerror}"))
        return
    for entry in listed:
        if entry.name in APART or entry.name == FILE_NAME or (depth >= DEPTH and entry.name in INNER):
            continue
        link, folder = entry.is_symlink(), _is_folder(entry)
        if folder and not (link and depth >= DEPTH):
            yield from _folders(entry.path, depth + 1, links + link, broken)
        elif not folder and depth < DEPTH:
            if link and not os.path.exists(entry.path):
                broken.append((Path(entry.path), "a link that leads nowhere"))
            elif depth == DEPTH - 1 and entry.name.startswith(RUN):
                broken.append((Path(entry.path), "a file, and no run's folder"))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False
