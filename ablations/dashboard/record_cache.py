"""A study's records and its runs' progress, of which only what changed is read again."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from analysis.study import Study
from core.records import run_record
from core.records.designs import Design
from core.records.run_folders import list_runs
from core.records.run_record import OutOfReachError, RunRecord, UnreadableRecordError

LOSS = "train/nelbo"
Stamp = tuple[int, int, int]


@dataclass(frozen=True)
class Reading:
    """Progress of reading. changed: whether anything differs from the time before."""

    done: int
    total: int
    changed: bool


class RecordReader:
    """The records below a study's folder.

    A file is read when it is new, or its time, size or inode changed; a record is kept without what the page doesn't show
    (routing, expert load, config), which is most of it.
    """

    def __init__(self, folder: Path, metrics: Sequence[str]) -> None:
        """metrics: those whose curves over validations are kept."""
        self.folder, self.metrics = folder, metrics
        self._stamps: dict[Path, Stamp] = {}
        self._found: dict[Path, RunRecord] = {}
        self._unreadable: dict[Path, str] = {}

    def read(self, at_once: int = 64) -> Iterator[Reading]:
        """Bring what is known up to date; tells how far it is after so many files, and at the end."""
        now = dict(_stamped(self.folder))
        gone = [path for path in self._stamps if path not in now]
        for path in gone:
            self._forget(path)
        due = [path for path, stamp in now.items() if self._stamps.get(path) != stamp]
        for count, path in enumerate(due, 1):
            self._forget(path)
            self._stamps[path] = now[path]
            try:
                self._found[path] = _slim(run_record.read(path), self.metrics)
            except (UnreadableRecordError, OutOfReachError) as error:
                self._unreadable[path] = f"{path.relative_to(self.folder)}: {str(error).removeprefix(f'{path}: ')}"
            except FileNotFoundError:  # set aside since it was listed
                self._forget(path)
            if count % at_once == 0 and count < len(due):
                yield Reading(len(now) - len(due) + count, len(now), True)
        yield Reading(len(now), len(now), bool(due or gone))

    def study(self, design: Design) -> Study:
        """Study of the records so far under a design."""
        study = Study.of([self._found[path] for path in sorted(self._found)], design, self.unreadable)
        assert study is not None  # with a design there is one
        return study.with_history(self.folder)

    @property
    def unreadable(self) -> list[str]:
        """Files that can't be trusted, each with what is wrong."""
        return [self._unreadable[path] for path in sorted(self._unreadable)]

    def _forget(self, path: Path) -> None:
        for known in (self._stamps, self._found, self._unreadable):
            known.pop(path, None)


def _stamped(study: Path) -> Iterator[tuple[Path, Stamp]]:
    """Every run's record.json below a study with what changes when it does."""
    for path in list_runs(study).records:
        try:
            found = os.stat(path) if path.exists() else os.lstat(path)  # of a link that leads nowhere the link's own
        except FileNotFoundError:  # set aside since it was listed
            continue
        yield path, (found.st_mtime_ns, found.st_size, found.st_ino)


def _slim(record: RunRecord, metrics: Sequence[str]) -> RunRecord:
    curve = {name: record.curve[name] for name in ("tokens", LOSS) if name in record.curve}
    validation = {name: record.validation[name] for name in ("tokens", *metrics) if name in record.validation}
    study = {"arm": record.study.get("arm")}
    return replace(record, curve=curve, validation=validation, study=study, routing={}, expert_load={}, config={})
