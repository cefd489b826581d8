"""A study's records, of which only what changed is read again, and learning curves by arm, runs in training included."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from analysis.study import Study, thinned
from core.records import run_record
from core.records.designs import Design
from core.records.run_folders import list_runs
from core.records.run_record import OutOfReachError, RunRecord, UnreadableRecordError

LOSS = "train/nelbo"
Stamp = tuple[int, int, int]
POINTS = 60
Run = tuple[np.ndarray, np.ndarray]  # (T,) tokens and (T,) values


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


class Curves:
    """The curves of a study's arms, of which only those that changed are computed again."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[Any, dict[str, Any]]] = {}

    def of(
        self, study: Study, arm: str, training: Sequence[Mapping[str, Any]], charts: Sequence[str]
    ) -> dict[str, Any]:
        """An arm's "validation" (the primary metric), "loss" and others: columns "tokens", "mean", "sd", "n" over its runs.

        charts: the others, by their names. training: the progress of each of its runs in training. Failed runs are left out.
        Runs that haven't come so far count up to where they are; sd is None where a single one is left.
        """
        records = study.records_of(arm)
        before, found = self._known.get(arm, (None, {}))
        # The records themselves, not their ids: an id may be given again.
        key = (study.design.metric, training, charts)
        if before is None or not _same(before[0], records) or before[1:] != key:
            columns = {"validation": ("validation", study.design.metric), "loss": ("curve", LOSS)}
            found = {
                name: band(
                    [
                        *study.series(arm, table, column).values(),
                        *(run for progress in training for run in _in_training(progress, column)),
                    ]
                )
                for name, (table, column) in (columns | {name: ("validation", name) for name in charts}).items()
            }
            self._known[arm] = ((records, *key), found)
        return found


def _same(one: Sequence[Any], two: Sequence[Any]) -> bool:
    return len(one) == len(two) and all(a is b for a, b in zip(one, two, strict=True))


def band(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """Mean and standard deviation of runs on the points of the longest one, thinned to POINTS; none without a run."""
    runs = [(tokens_T, values_T) for tokens_T, values_T in runs if len(tokens_T)]
    if not runs:
        return {"tokens": [], "mean": [], "sd": [], "n": []}
    grid_T = max((tokens_T for tokens_T, _ in runs), key=lambda tokens_T: (tokens_T[-1], len(tokens_T)))
    grid_T = grid_T[thinned(len(grid_T), POINTS)]
    values_ST = np.array([np.interp(grid_T, *run, left=np.nan, right=np.nan) for run in runs])
    n_T = np.isfinite(values_ST).sum(0)
    filled_ST = np.where(np.isfinite(values_ST), values_ST, 0.0)
    mean_T = filled_ST.sum(0) / np.maximum(1, n_T)
    square_ST = np.where(np.isfinite(values_ST), (values_ST - mean_T) ** 2, 0.0)
    sd_T = np.sqrt(square_ST.sum(0) / np.maximum(1, n_T - 1))
    kept = n_T > 0
    rows = zip(grid_T[kept], mean_T[kept], sd_T[kept], n_T[kept], strict=True)
    columns: dict[str, list[Any]] = {"tokens": [], "mean": [], "sd": [], "n": []}
    for tokens, mean, sd, n in rows:
        for name, value in zip(
            columns, (float(tokens), float(mean), float(sd) if n > 1 else None, int(n)), strict=True
        ):
            columns[name].append(value)
    return columns


def _in_training(progress: Mapping[str, Any], column: str) -> list[Run]:
    told = progress.get("curves", {}).get(column)
    if not told or not told["step"] or not progress.get("tokens_per_step"):
        return []
    return [(np.array(told["step"], float) * progress["tokens_per_step"], np.array(told["value"], float))]
