"""Verification of a search: every record is hashed again, and held against the space and the ledger."""

import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from core.config.run import config_hash
from core.errors import UserError
from core.records import designs, run_record
from core.records.designs import SearchDesign
from sweeps.runs.record_checks import Finding, Run, Verification, read_runs
from sweeps.runs.verify import NO_LEDGER, check_records
from sweeps.search.plan import SearchPlan, identity_of
from sweeps.search.results import Entry, entry_file, read_entry
from sweeps.search.rungs import metrics_at
from sweeps.search.samplers import latest
from sweeps.search.spec import arm_name
from sweeps.search.status import groups_of
from sweeps.search.tuner import objectives

Told = Mapping[str, list[FrozenTrial]]  # the ledger's trials, by group


@dataclass(frozen=True)
class _Configuration:
    """A configuration's folder: its entry and its records, by seed. shared: with another search."""

    place: str
    entry: Entry
    runs: Mapping[int, Run]
    shared: bool


def verify(folder: Path, told: Told | None) -> Verification:
    """Look at every file of a search. Arguments as of sweeps.runs.verify.verify."""
    findings: list[Finding] = []
    plan = _plan(folder, findings)
    runs = list(read_runs(folder, findings))
    checks = _SearchChecks(plan, _configurations(folder, plan, runs, findings), told)
    return check_records(folder, runs, findings, checks)


def trials_by_group(storage: BaseStorage | None, study: str, out: Path) -> dict[str, list[FrozenTrial]] | None:
    """A search's trials by group; None where the ledger has none, or nothing says which search it was."""
    if storage is None:
        return None
    try:
        return {
            label: group.trials
            for label, group in groups_of(storage, study, SearchDesign.read(out / study / designs.FILE_NAME)).items()
        }
    except (UserError, OSError, ValueError, KeyError):
        return None


@dataclass(frozen=True)
class _SearchChecks:
    """Checks of a search. plan: None where its design can't be read. found: its configurations by arm."""

    plan: SearchPlan | None
    found: Mapping[str, _Configuration]
    told: Told | None

    def counts(self, run: Run) -> bool:
        return self.plan is None or any(run is own for each in self.found.values() for own in each.runs.values())

    def of_run(self, run: Run, place: str) -> Iterator[Finding]:
        yield from ()

    def of_ledger(self, runs: Sequence[Run]) -> Iterator[Finding]:
        if self.told is None:
            yield NO_LEDGER
        elif self.plan is not None:
            yield from _ledger(self.plan, self.found, self._latest)
            yield from _twice(self.told)

    def missing(self, recorded: Collection[tuple[str, int]]) -> int:
        if self.plan is None:
            return 0
        complete = [_arm(trial) for trial in self._latest if trial.state == TrialState.COMPLETE]
        return sum(
            len(self.plan.search.seeds) - (len(self.found[arm].runs) if arm in self.found else 0) for arm in complete
        )

    @property
    def _latest(self) -> list[FrozenTrial]:
        return [trial for trials in (self.told or {}).values() for trial in latest(trials)]


def _plan(folder: Path, findings: list[Finding]) -> SearchPlan | None:
    try:
        design = SearchDesign.read(folder / designs.FILE_NAME)
        plan = SearchPlan.of_design(design)
        control = config_hash(plan.resolver.control, with_seed=False)
        if identity_of(plan.search, control, design.data_fingerprint) != design.identity:
            findings.append(Finding("design.json", "its space or settings were changed since the search was made"))
        return plan
    except (OSError, ValueError, KeyError, TypeError, UserError) as error:
        findings.append(
            Finding("design.json", f"can't be read ({type(error).__name__}): nothing says what was searched")
        )
        return None


def _configurations(
    folder: Path, plan: SearchPlan | None, runs: list[Run], findings: list[Finding]
) -> dict[str, _Configuration]:
    """The configurations of the design last run, by arm, with those of their records that it counts."""
    found = {}
    for path in sorted(folder.glob("*/search-*.json")):
        place = path.relative_to(folder).as_posix()
        try:
            entry = read_entry(path)
        except (OSError, ValueError):
            findings.append(Finding(place, "can't be read: nothing says which trial this is"))
            continue
        if plan is None or path.name != entry_file(plan.design.identity):
            continue
        arm = path.parent.name
        if (said := _differs(plan, arm, entry)) is not None:
            findings.append(Finding(place, said))
        own = {run.record.seed: run for run in runs if run.path.parents[1] == path.parent and _fits(plan, run)}
        found[arm] = _Configuration(arm, entry, own, len(list(path.parent.glob("search-*.json"))) > 1)
    return found


def _differs(plan: SearchPlan, arm: str, entry: Entry) -> str | None:
    try:
        config = plan.resolver.resolve(entry.settings).config
    except (UserError, KeyError, TypeError, AttributeError, AssertionError):
        config = None
    if config is None or arm_name(config_hash(config, with_seed=False)) != arm:
        return "its settings don't give the config that was trained"
    if entry.group not in {group.label for group in plan.groups}:
        return f"there is no group '{entry.group}'"
    return None


def _fits(plan: SearchPlan, run: Run) -> bool:
    record, data = run.record, plan.design.data_fingerprint
    return record.seed in plan.search.seeds and (record.data_fingerprint == data or record.status == "failed")


def _arm(trial: FrozenTrial) -> str:
    return arm_name(trial.user_attrs["arm"])


def _ledger(plan: SearchPlan, found: Mapping[str, _Configuration], trials: list[FrozenTrial]) -> Iterator[Finding]:
    by_arm = {_arm(trial): trial for trial in trials}
    for arm, configuration in found.items():
        if arm not in by_arm and configuration.runs:
            yield Finding(configuration.place, "the ledger doesn't know it")
    for arm, trial in by_arm.items():
        held = found.get(arm)
        whole = held is not None and set(held.runs) == set(plan.search.seeds)
        if trial.state == TrialState.COMPLETE and not whole:
            yield Finding(arm, "the ledger has its result, and a record of it is gone")
        if held is not None:
            yield from _against(plan, held, trial, whole)


def _against(plan: SearchPlan, held: _Configuration, trial: FrozenTrial, whole: bool) -> Iterator[Finding]:
    """Find differences between a trial and its records; of a trial under way only what can't change any more."""
    own, runs, place = trial.user_attrs, list(held.runs.values()), held.place
    if own["settings"] != held.entry.settings:
        yield Finding(place, "the ledger says that it has other settings")
    several = len(plan.rungs) > 1  # else values on the way are of seeds
    for tokens, value in trial.intermediate_values.items() if several and whole else ():
        step = round(tokens / plan.design.tokens_per_step)
        rows = [row for run in runs if (row := metrics_at(run.record, step)) is not None]
        mean = math.fsum(row.get(plan.design.metrics[0], math.nan) for row in rows) / max(1, len(rows))
        if len(rows) == len(runs) and not _same(mean, value):
            yield Finding(place, f"at step {step} its records say {mean:.6g}, and the ledger {value:.6g}")
    paused = several and len(trial.intermediate_values) > own["target"]
    if trial.state == TrialState.RUNNING or (trial.state == TrialState.WAITING and not paused):
        return
    if "records" not in own:
        yield Finding(place, "told to the ledger without hashes, by an earlier version", note=True)
    for run in runs if "records" in own else ():
        if own["records"].get(str(run.record.seed)) != run_record.digest(run.content):
            said = "its record was changed since the ledger was told of it"
            said += ": another search trained it too" if held.shared else ""
            yield Finding(f"{place}/{run.path.parent.name}", said, note=held.shared)
    failed = any(run.record.status == "failed" for run in runs)
    if failed and trial.state != TrialState.FAIL:
        yield Finding(place, "it failed, and the ledger says otherwise", note=held.shared)
    # A trial also fails whose records are complete, but without values to be compared by.
    comparable = all(isinstance(objectives(plan, run.record.metrics), list) for run in runs)
    if not failed and whole and trial.state == TrialState.FAIL and comparable:
        yield Finding(place, "it didn't fail, and the ledger says otherwise", note=held.shared)
    if trial.state == TrialState.COMPLETE and whole:
        for value, name in zip(trial.values, plan.design.metrics, strict=True):
            values = [run.record.metrics.get(name) for run in runs]
            mean = sum(math.nan if said is None else said for said in values) / len(values)
            if not _same(mean, value):
                yield Finding(place, f"its {name} is {mean:.6g}, and the ledger says {value:.6g}")


def _twice(told: Told) -> Iterator[Finding]:
    for trials in told.values():
        complete = Counter(_arm(trial) for trial in trials if trial.state == TrialState.COMPLETE)
        for arm, times in complete.items():
            if times > 1:
                yield Finding(arm, f"the ledger has {times} results of it")


def _same(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=1e-12, abs_tol=1e-15)
