"""Records -> one table: for every arm and seed of a design, the run that was recorded, or that none was.

A record's `study` holds {"ablation", "size", "arm", "design"}, the last a core.records.designs.Design as JSON.
"""

import gc
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from core.errors import UserError
from core.records import decoded, designs, likelihood_kind, run_record, study_history
from core.records.decoded import Decoded
from core.records.designs import Design, Likelihood
from core.records.metrics import METRICS
from core.records.provenance import data_of, lacks_files, named_files
from core.records.run_folders import list_runs
from core.records.run_record import OutOfReachError, RunRecord, UnreadableRecordError
from core.records.study_history import Event, HistoryError
from core.runtime.json_files import DamagedFileError


@dataclass(frozen=True)
class Study:
    """One design and the records that fit it.

    cells: record by (arm name, seed). set_aside: records that fit no cell, by reason. unreadable: files that can't be
    trusted, each with what is wrong. decoded: of each cell's model, what it answered, by the way in which it was decoded.
    history: what was noted of its designs and looks (core.records.study_history); history_trouble: why that can't be read.
    """

    design: Design
    cells: Mapping[tuple[str, int], RunRecord]
    set_aside: Mapping[str, int]
    unreadable: tuple[str, ...]
    decoded: Mapping[tuple[str, int], Mapping[str, Decoded]] = field(default_factory=dict)
    history: tuple[Event, ...] = ()
    history_trouble: str = ""
    # A report's figures on paper and on the page, and learning speed, ask for the same series: they are read once.
    _series: dict[tuple[str, str, str], dict[int, tuple[np.ndarray, np.ndarray]]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @classmethod
    def load(cls, folder: Path, design: Design | None = None) -> "Study | None":
        """The study in a folder: a design, by default the one last run there (design.json, else the newest record's), and
        the records that fit it.

        None when nothing was recorded.
        """
        found, unreadable, homes = [], [], dict[str, Path]()
        listing = list_runs(folder)
        unreadable += [f"{path.relative_to(folder)}: {reason}" for path, reason in listing.broken]
        with uncollected():
            for path in listing.records:
                try:
                    found.append(run_record.read(path))
                    homes[found[-1].run_hash + found[-1].data_fingerprint] = path.parent
                except FileNotFoundError:  # set aside since it was listed
                    continue
                except (UnreadableRecordError, OutOfReachError) as error:
                    unreadable.append(f"{path.relative_to(folder)}: {str(error).removeprefix(f'{path}: ')}")
        try:
            design = design or Design.read(folder / designs.FILE_NAME)
        except FileNotFoundError:
            design = None
        except DamagedFileError as error:
            raise UserError(
                f"{folder / designs.FILE_NAME} is damaged ({error}): delete it, and the newest record's own design is used"
            ) from None
        study = cls.of(found, design, unreadable)
        study = study and study.with_history(folder)
        return study and study.with_answers(homes)

    @classmethod
    def of(
        cls, found: Iterable[RunRecord], design: Design | None = None, unreadable: Iterable[str] = ()
    ) -> "Study | None":
        """Fit records into a design; without one, into the newest record's own."""
        found = sorted(found, key=lambda record: (record.finished_at, record.run_hash))
        own = (designs.parse_or_none(record.study.get("design")) for record in reversed(found))
        design = design or next((one for one in own if isinstance(one, Design)), None)
        if design is None:
            return None
        places = {arm.hash: arm.name for arm in design.arms}
        cells: dict[tuple[str, int], RunRecord] = {}
        set_aside: dict[str, int] = {}
        for record in found:
            reason = _misfit(record, design, places)
            key = (places.get(record.arm_hash, ""), record.seed)
            if reason is None and key in cells:
                reason = "a second record of the same run"
                if record.status == "complete":  # newest last: a complete one replaces what was there
                    cells[key] = record
            elif reason is None:
                cells[key] = record
            if reason is not None:
                set_aside[reason] = set_aside.get(reason, 0) + 1
        return cls(design, cells, set_aside, tuple(unreadable))

    def with_history(self, folder: Path) -> "Study":
        """With what was noted in a folder of its designs and looks."""
        try:
            return replace(self, history=tuple(study_history.read(folder)))
        except HistoryError as error:
            return replace(self, history_trouble=f"What was declared and looked at before isn't known: {error}")

    def with_answers(self, homes: Mapping[str, Path]) -> "Study":
        """With what each cell's model answered, as the design wants it. homes: folders by run hash and data fingerprint."""
        found, asked = {}, self.design.decoders
        if asked is None:
            return self
        for cell, record in self.cells.items():
            pairs = decoded.responses(asked, record, homes[record.run_hash + record.data_fingerprint])
            found[cell] = {wanted.decoder: one for wanted, one in pairs if one is not None}
        return replace(self, decoded=found)

    @property
    def arms(self) -> list[str]:
        """Arm names, the control first."""
        return [arm.name for arm in self.design.arms]

    @property
    def labels(self) -> dict[str, str]:
        """Label of each arm."""
        return {arm.name: arm.label for arm in self.design.arms}

    @property
    def axis(self) -> str:
        """Name of what curves are drawn against."""
        return "training tokens" if self.design.logs is None else self.design.logs.axis

    @property
    def complete(self) -> int:
        return sum(record.status == "complete" for record in self.cells.values())

    @property
    def failed(self) -> int:
        return sum(record.status == "failed" for record in self.cells.values())

    @property
    def missing(self) -> int:
        return sum((arm, seed) not in self.cells for arm in self.arms for seed in self.seeds_of(arm))

    def seeds_of(self, arm: str) -> Sequence[int]:
        """The seeds under which an arm is to be trained: all of the design's, or as many of the first as it has bought."""
        seeds, adaptive = self.design.seeds, self.design.adaptive
        return seeds if adaptive is None else seeds[: adaptive.bought.get(arm, 0)]

    def within(self, seeds: Mapping[str, int]) -> "Study":
        """Without the records that an adaptive sweep hasn't bought: they may be there from a fixed one. seeds: by arm."""
        bought = {(arm, seed) for arm, count in seeds.items() for seed in self.design.seeds[:count]}
        kept = {cell: record for cell, record in self.cells.items() if cell in bought}
        beyond = len(self.cells) - len(kept)
        aside = {"beyond what this sweep has bought": beyond} if beyond else {}
        return replace(self, cells=kept, set_aside={**self.set_aside, **aside})

    def records_of(self, arm: str) -> list[RunRecord]:
        """An arm's records in the order of seeds, failed ones included."""
        return [self.cells[arm, seed] for seed in self.design.seeds if (arm, seed) in self.cells]

    def values(self, arm: str, metric: str) -> np.ndarray:
        """A metric of an arm by seed, NaN where the run is missing, failed or didn't report it. Returns (S,)."""
        column = []
        for seed in self.design.seeds:
            record = self.cells.get((arm, seed))
            value = record.metrics.get(metric) if record is not None and record.status == "complete" else None
            column.append(np.nan if value is None else float(value))
        return np.array(column)

    def data_differs(self, one: str, two: str, seed: int) -> bool:
        """True if two arms' finished runs of a seed saw different data, so that their values can't be compared."""
        pair = self.cells.get((one, seed)), self.cells.get((two, seed))
        fingerprints = {
            data_of(record.data_fingerprint) for record in pair if record is not None and record.status != "failed"
        }
        return len(fingerprints) > 1

    def likelihoods(self, metric: str, one: str, two: str) -> tuple[Likelihood, Likelihood] | None:
        """Likelihood kinds of two arms in a metric; None for one that is no likelihood, and for older designs."""
        kinds = self.design.by_name[one].likelihood, self.design.by_name[two].likelihood
        if not METRICS[metric].likelihood or kinds[0] is None or kinds[1] is None:
            return None
        return kinds[0], kinds[1]

    def incomparable(self, metric: str, one: str, two: str, seeds: int | None = None) -> str | None:
        """Reason why two arms' numbers can't be compared, or None. seeds: how many of the first; None: all."""
        kinds = self.likelihoods(metric, one, two)
        if kinds is not None and (reason := likelihood_kind.incomparable(*kinds)):
            return reason
        if any(self.data_differs(one, two, seed) for seed in self.design.seeds[:seeds]):
            whom = "the control" if self.design.control in (one, two) else "each other"
            return f"trained on other data than {whom}, so not compared"
        return None

    def series(self, arm: str, table: str, column: str) -> dict[int, tuple[np.ndarray, np.ndarray]]:
        """A logged column of an arm's finished runs against tokens, first stages' included, by seed: (T,) tokens and (T,)
        values.

        table: "curve" or "validation".
        """
        if (arm, table, column) not in self._series:
            found = self._series[arm, table, column] = {}
            for record in self.records_of(arm):
                columns: Mapping[str, Any] = getattr(record, table)
                # Columns of other lengths, or without the tokens, are no curve; `ablate verify` says so of the record.
                if (
                    record.status == "complete"
                    and len(columns.get(column) or ()) == len(columns.get("tokens") or ()) > 0
                ):
                    tokens_T = np.array(columns["tokens"], float) + record.before.get("tokens", 0.0)
                    found[record.seed] = (tokens_T, np.array(columns[column], float))
        return self._series[arm, table, column]


@contextmanager
def uncollected() -> Iterator[None]:
    """Put garbage collection off: searching millions of numbers for circles takes as long as reading them."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def thinned(length: int, most: int) -> np.ndarray:
    """Places in a row of at most so many of its values, spread evenly, the first and the last among them. Returns (T,)."""
    return np.unique(np.linspace(0, length - 1, min(length, most)).round().astype(int))


def _misfit(record: RunRecord, design: Design, places: Mapping[str, str]) -> str | None:
    if record.arm_hash not in places or record.seed not in design.seeds:
        return "of another design (config or seed changed since)"
    # A run that failed before its data was read has no fingerprint; it failed all the same.
    if record.status != "complete":
        return None
    arm = design.by_name[places[record.arm_hash]]
    first = arm.first_data_fingerprint
    if first is not None and designs.first_stage_data(record.study | {"arm": arm.name}) not in (None, first):
        return "its first stage was trained on other data, so not compared"
    wanted = design.fingerprints if arm.data_fingerprint is None else (arm.data_fingerprint,)
    if record.data_fingerprint in wanted:
        return None
    if any(lacks_files(record.data_fingerprint, each) for each in wanted):
        return f"recorded by a version that didn't note what {named_files(record.config)} held, so not compared"
    if any(data_of(record.data_fingerprint) == data_of(each) for each in wanted):
        return f"trained from another file than lies there now ({named_files(record.config)}), so not compared"
    return "trained on other data (the fingerprint differs), so not compared"
