"""Status of a search: its configurations from the ledger, their progress, and the runs that confirm it. Reads only."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from core.errors import UserError
from core.records import designs
from core.records.designs import SearchDesign
from core.records.run_record import FILE_NAME
from core.runtime.units import short
from sweeps.runs.liveness import PREEMPTED, Workplace
from sweeps.runs.progress import read_progress
from sweeps.runs.status import (
    DEAD,
    GONE,
    Row,
    StudyStatus,
    TasksOf,
    labels,
    lives,
    no_tasks,
    open_known,
    read_design,
    unknown,
    worker_of,
)
from sweeps.runs.status import status as status_of_runs
from sweeps.search.rungs import expected_steps
from sweeps.search.samplers import latest
from sweeps.search.spec import arm_name
from sweeps.storage.retrying import PatientStorage
from sweeps.storage.storage import choose_url
from sweeps.studies.study import CONFIRM, Level, study_name

STATES = ("running", "queued", "paused", "finished", "pruned", "failed", "lost", "missing")


@dataclass(frozen=True, kw_only=True)
class ConfigurationStatus(Row):
    """One configuration.

    state: "queued": a worker left it, or it is tried again; "paused" at a rung, where it may go on; "pruned": it goes no
        further; "lost": its worker is dead. reason: of the last three.
    until: the step of the schedule to which it is, or is to be, trained. step, steps: how far, over all seeds.
    value: the first objective where it was last compared.
    """

    group: str
    trial: int
    settings: Mapping[str, Level]
    until: int
    value: float | None = None

    @property
    def label(self) -> str:
        return f"trial {self.trial} ({self.group})" if self.group else f"trial {self.trial}"


@dataclass(frozen=True, kw_only=True)
class SearchStatus(StudyStatus[ConfigurationStatus]):
    """All configurations of a search's last design.

    undrawn: configurations that the budget still allows; None for a budget of tokens. tokens: trained, of budget_tokens.
    over: nothing is left to search.
    """

    noun: ClassVar[str] = "configuration"
    of_arms: ClassVar[bool] = False
    states: ClassVar[tuple[str, ...]] = STATES

    configurations: tuple[ConfigurationStatus, ...]
    undrawn: int | None
    tokens: float
    budget_tokens: float | None
    over: bool

    @property
    def rows(self) -> tuple[ConfigurationStatus, ...]:
        return self.configurations

    @property
    def counts(self) -> dict[str, int]:
        return {state: count for state, count in super().counts.items() if state != "missing" or count}

    @property
    def is_under_way(self) -> bool:
        if not self.over:
            return True
        return bool(self.of("finished")) if self.confirmation is None else self.confirmation.is_under_way

    @property
    def remainder(self) -> str:
        if self.budget_tokens is not None:
            return f"{short(self.tokens)} of {short(self.budget_tokens)} tokens"
        return f"{self.undrawn} still to draw" if self.undrawn else ""

    @property
    def awaited(self) -> str:
        return "the confirmation hasn't begun" if self.over else "confirmation: once the search is over"

    def details(self) -> Iterator[tuple[str, bool]]:
        by_step: dict[int, list[ConfigurationStatus]] = {}
        for row in self.of("paused"):
            by_step.setdefault(row.until, []).append(row)
        yield from ((f"paused after step {step}: {labels(rows)}", False) for step, rows in sorted(by_step.items()))

    def to_dict(self) -> dict[str, Any]:
        confirmation = None if self.confirmation is None else self.confirmation.to_dict()
        return super().to_dict() | {"under_way": self.is_under_way, "confirmation": confirmation}


@dataclass(frozen=True)
class Group:
    """A group's study, as the storage has it. exhausted: nothing new can be drawn from the space."""

    trials: list[FrozenTrial]
    exhausted: bool

    def undrawn(self, trials: int) -> int:
        """Number of configurations that a budget still allows."""
        return 0 if self.exhausted else max(0, trials - len(latest(self.trials)))

    def total(self, name: str) -> float:
        """The sum of an attribute that counts, over all trials."""
        return float(sum(trial.user_attrs.get(name, 0) for trial in self.trials))

    def is_closed(self, design: SearchDesign) -> bool:
        """True if no configuration will be drawn any more."""
        spent = not self.undrawn(design.trials) if design.trials else self.total("tokens") >= (design.tokens or 0)
        return spent or self.exhausted


def groups_of(storage: BaseStorage, study: str, design: SearchDesign) -> dict[str, Group]:
    """A search's studies by the level of what is compared. Raises UserError where the storage has none of them."""
    first = f"{study}#{design.identity}"
    found = {}
    for known in storage.get_all_studies():
        if known.study_name == first or known.study_name.startswith(f"{first}@"):
            trials = storage.get_all_trials(known._study_id, deepcopy=False)
            label = known.study_name.removeprefix(first).removeprefix("@")
            found[label] = Group(trials, bool(known.user_attrs.get("exhausted")))
    if not found:
        raise unknown(study)
    return found


def status(
    study: str,
    out: Path,
    url: str | None = None,
    *,
    storage: PatientStorage | None = None,
    tasks_of: TasksOf = no_tasks,
) -> SearchStatus:
    """Read the status of a search. url, storage, tasks_of: as for a sweep's status.

    Raises UserError when nothing of it has been run there.
    """
    design = read_design(study, out)
    if not isinstance(design, SearchDesign):
        raise UserError(f"{out / study} holds an ablation's runs, not a search's: name another folder with --out")
    url = choose_url(url, out, out / study)
    storage = storage or open_known(study, url)
    groups = groups_of(storage, study, design)
    reader = _Reader(design, out / study, list(groups.values()))
    found = tuple(reader.read(label, trial) for label, group in groups.items() for trial in latest(group.trials))
    ended = all(configuration.state in ("finished", "pruned", "failed", "missing") for configuration in found)
    over = ended and all(group.is_closed(design) for group in groups.values())
    confirming = study_name(study, CONFIRM)
    begun = over and (out / confirming / designs.FILE_NAME).exists()
    confirmation = status_of_runs(confirming, out, url, storage=storage, tasks_of=tasks_of) if begun else None
    tasks, silence = tasks_of(out / study)
    total = {
        name: sum(group.total(name) for group in groups.values()) for name in ("tokens", PREEMPTED, "losses", "moved")
    }
    return SearchStatus(
        study=study,
        configurations=found,
        undrawn=sum(group.undrawn(design.trials) for group in groups.values()) if design.trials else None,
        tokens=total["tokens"],
        budget_tokens=design.tokens and design.tokens * len(groups),
        preempted=round(total[PREEMPTED]),
        deaths=round(total["losses"] + total["moved"]),
        tasks=tasks,
        silence=silence,
        over=over,
        confirmation=confirmation,
        seconds_left=confirmation.seconds_left if confirmation else reader.seconds_left(found),
    )


class _Reader:
    """Reader of trials with their design. rate: tokens a worker trains in a second; None before any were told."""

    def __init__(self, design: SearchDesign, folder: Path, groups: Sequence[Group]) -> None:
        self._design, self._folder, self._groups = design, folder, groups
        self._rungs, self._seeds = design.rungs, design.seeds
        self._workplace = Workplace()
        seconds = sum(group.total("seconds") for group in groups)
        self._rate = sum(group.total("tokens") for group in groups) / seconds if seconds else None

    def read(self, group: str, trial: FrozenTrial) -> ConfigurationStatus:
        own, values = trial.user_attrs, trial.intermediate_values
        compared = len(self._rungs) > 1  # else values on the way are of seeds
        paused = compared and trial.state == TrialState.WAITING and len(values) > own["target"]
        at = min(own["bracket"] + own["target"], len(self._rungs) - 1)
        value = values[max(values)] if compared and values else None
        state = self._state(trial, paused)
        found = ConfigurationStatus(
            group=group,
            trial=trial.number,
            settings=own["settings"],
            state=state,
            until=self._rungs[at],
            value=trial.values[0] if trial.values else value,
            reason={"missing": GONE, "lost": DEAD}.get(state, own.get("reason")),
        )
        if state not in ("running", "lost"):
            return found
        step, steps = self._progress(own["arm"], found.until), found.until * len(self._seeds)
        measured = self._rate if state == "running" else None
        left = (steps - step) * self._design.tokens_per_step / measured if measured else None
        return replace(found, where=worker_of(trial), step=step, steps=steps, seconds_left=left)

    def _state(self, trial: FrozenTrial, paused: bool) -> str:
        if trial.state == TrialState.RUNNING:
            return "running" if lives(trial, self._workplace) else "lost"
        if trial.state == TrialState.WAITING:
            return "paused" if paused else "queued"
        if trial.state == TrialState.COMPLETE and not self._recorded(trial.user_attrs["arm"]):
            return "missing"
        return {TrialState.COMPLETE: "finished", TrialState.PRUNED: "pruned"}.get(trial.state, "failed")

    def _recorded(self, arm: str) -> bool:
        """True if every seed of a configuration has its record."""
        places = self._folder / arm_name(arm)
        return all(any(places.glob(f"seed-{seed}-*/{FILE_NAME}")) for seed in self._seeds)

    def _progress(self, arm: str, until: int) -> int:
        """Steps that all seeds of a configuration have come to."""
        total = 0
        for seed in self._seeds:
            places = (self._folder / arm_name(arm)).glob(f"seed-{seed}-*")
            rows = [row for place in places if (row := read_progress(place))]
            total += min(until, max(rows, key=lambda row: row["updated"])["step"] or 0) if rows else 0
        return total

    def seconds_left(self, found: Sequence[ConfigurationStatus]) -> float | None:
        """An estimate for search and confirmation with the workers of now; None while nothing trains or was measured."""
        running = [configuration for configuration in found if configuration.state == "running"]
        if not running or not self._rate:
            return None
        design, one = self._design, self._design.tokens_per_step * len(self._seeds)
        tokens = 0.0
        for group in self._groups:
            whole = design.tokens or 0.0
            if design.trials:
                whole = one * expected_steps(design.trials, self._rungs, hyperband=design.pruner == "hyperband")
            tokens += max(0.0, whole - group.total("tokens"))
        tokens = max(tokens, sum(c.seconds_left or 0.0 for c in running) * self._rate)
        arms = len(self._groups) * len(design.metrics) + 1
        tokens += arms * design.declared["confirm"] * design.tokens_per_run
        return float(tokens / self._rate / len(running))
