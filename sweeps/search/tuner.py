"""Tuner: asks one Optuna study for jobs and tells it the results.

A trial is a configuration with all its seeds. While it trains it is RUNNING; paused at a rung, or queued again after its
worker died, it is WAITING, and whoever sets it RUNNING again has it alone (the storage compares and sets). Values on the
way are reported at training tokens. What is never trained (infeasible, or drawn before) is PRUNED without a value. A
failed configuration that is tried again is a new trial, which takes the failed one's place.
"""

import math
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.pruners import NopPruner, WilcoxonPruner
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

from core.config.run import RunConfig, config_hash
from core.records.metrics import METRICS
from sweeps.runs.liveness import PREEMPTED, TASKS, Workplace
from sweeps.search.feasible import Resolved
from sweeps.search.plan import Group, SearchPlan
from sweeps.search.rungs import bracket_of, promotable
from sweeps.search.samplers import RETRIES, SamplerView, latest, sampler_for
from sweeps.search.space import draw, parameters
from sweeps.storage.retrying import OWNER, TOKEN
from sweeps.studies.study import Level

MOST_DRAWS = 100  # in a row that give nothing to train


@dataclass(frozen=True)
class Job:
    """A configuration to train, under every seed, up to a rung. until: that rung's step, None = to the end."""

    trial_id: int
    number: int
    settings: Mapping[str, Level]
    config: RunConfig
    rung: int
    until: int | None


class Tuner:
    """One group's study. Callers keep `next` and `finish` to one process at a time; everything else is in the storage."""

    def __init__(
        self,
        plan: SearchPlan,
        group: Group,
        storage: BaseStorage,
        workplace: Workplace = Workplace(),  # noqa: B008  (this machine)
    ) -> None:
        self.plan, self.group, self._storage, self._resolver = plan, group, storage, plan.resolver
        self._workplace, self._began = workplace, dict[int, float]()
        goals: list[Any] = ["minimize" if goal == "min" else "maximize" for goal in plan.design.goals]
        study = optuna.create_study(study_name=group.study, storage=storage, directions=goals, load_if_exists=True)
        self.study, self._id = study, study._study_id
        self._sign = 1.0 if plan.design.goals[0] == "min" else -1.0
        self._draws: dict[tuple[tuple[str, Level], ...], Resolved] = {}

    def label(self, number: int) -> str:
        """A trial's name for people."""
        return f"trial {number}" + (f" ({self.group.label})" if self.group.label else "")

    def trials(self, *states: TrialState) -> list[FrozenTrial]:
        """The study's trials, by number."""
        return self._storage.get_all_trials(self._id, deepcopy=False, states=states or None)

    def trained(self) -> list[FrozenTrial]:
        """Trials that got, or will get, training; of a configuration that was tried again, the last."""
        return latest(self.trials())

    def tokens(self) -> float:
        """Training tokens of all trials so far, over all seeds."""
        return float(sum(trial.user_attrs.get("tokens", 0.0) for trial in self.trials()))

    def is_closed(self) -> bool:
        """True if the budget has no room for another configuration, or nothing new can be drawn."""
        budget = self.plan.search.budget
        full = len(self.trained()) >= budget.trials if budget.trials else self.tokens() >= (budget.tokens or 0)
        return full or bool(self._storage.get_study_user_attrs(self._id).get("exhausted"))

    def next(self) -> Job | None:
        """Next job: an interrupted one, else a promoted one, else a new configuration; None if there is none."""
        waiting = self.trials(TrialState.WAITING)
        for trial in waiting:
            paused = len(trial.intermediate_values) > trial.user_attrs["target"] and len(self.plan.rungs) > 1
            if not paused and (job := self._start(trial)):
                return job
        closed = self.is_closed()
        busy = bool(self.trials(TrialState.RUNNING))
        promoted = self._promotable(waiting, last=closed and not busy)
        if promoted is None and not closed:
            if job := self._draw():
                return job
            # Nothing new can be drawn: nobody but those in training is to be waited for.
            promoted = None if busy else self._promotable(waiting, last=True)
        if promoted is None:
            return None
        self._storage.set_trial_user_attr(promoted._trial_id, "target", len(promoted.intermediate_values))
        return self._start(self._storage.get_trial(promoted._trial_id))

    def finish(self) -> None:
        """Once `next` has nothing and nothing is RUNNING: tell paused configurations that they go no further."""
        for trial in self.trials(TrialState.WAITING):
            self._tell(trial._trial_id, TrialState.PRUNED, reason="not among the best at its last rung")

    def report_rung(self, job: Job, values: Sequence[float], tokens: float) -> None:
        """The configuration's mean value at its rung: it waits there for what comes of the others."""
        at = round(self.plan.design.tokens_per_step * self.plan.rungs[job.rung])
        self._spend(job, tokens)
        self._storage.set_trial_intermediate_value(job.trial_id, at, math.fsum(values) / len(values))
        self._storage.set_trial_state_values(job.trial_id, TrialState.WAITING)

    def report_seed(self, job: Job, place: int, value: float) -> bool:
        """One seed's value. Returns whether the other seeds aren't worth training (Wilcoxon, against the best so far)."""
        self._storage.set_trial_intermediate_value(job.trial_id, place, value)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            return WilcoxonPruner().prune(self.study, self._storage.get_trial(job.trial_id))

    def complete(self, job: Job, values: Sequence[float], tokens: float) -> None:
        """Every seed is trained to the end. values: the mean of each objective."""
        self._spend(job, tokens)
        self._storage.set_trial_state_values(job.trial_id, TrialState.COMPLETE, list(values))

    def prune(self, job: Job, tokens: float, reason: str) -> None:
        self._spend(job, tokens)
        self._tell(job.trial_id, TrialState.PRUNED, reason=reason)

    def fail(self, job: Job, tokens: float, reason: str) -> None:
        self._spend(job, tokens)
        self._tell(job.trial_id, TrialState.FAIL, reason=reason)

    def put_back(self, job: Job, tokens: float) -> None:
        """Leave a configuration whose worker was told to stop to whoever trains it next."""
        self._spend(job, tokens)
        if self._workplace.place is not None:
            times = self._storage.get_trial(job.trial_id).user_attrs.get(PREEMPTED, 0)
            self._storage.set_trial_user_attr(job.trial_id, PREEMPTED, times + 1)
        self.release(job.trial_id)

    def release(self, trial_id: int) -> None:
        """Put a trial that is no longer trained back in the queue; it goes on from its last checkpoint."""
        self._storage.set_trial_state_values(trial_id, TrialState.WAITING)

    def retry(self, trial: FrozenTrial) -> None:
        """Queue a failed configuration again: it goes on from the rung that it had reached."""
        kept = {name: trial.user_attrs[name] for name in ("bracket", "target", "settings", "arm")}
        again = create_trial(
            state=TrialState.WAITING,
            params=trial.params,
            distributions=trial.distributions,
            user_attrs=kept | {RETRIES: trial.number},
            system_attrs={name: said for name, said in trial.system_attrs.items() if name not in (TOKEN, OWNER)},
            intermediate_values=trial.intermediate_values,
        )
        self._storage.create_new_trial(self._id, template_trial=again)

    def _tell(self, trial_id: int, state: TrialState, *, reason: str) -> None:
        self._storage.set_trial_user_attr(trial_id, "reason", reason)
        self._storage.set_trial_state_values(trial_id, state)

    def _spend(self, job: Job, tokens: float) -> None:
        own, now = self._storage.get_trial(job.trial_id).user_attrs, time.monotonic()
        for name, more in (("tokens", tokens), ("seconds", now - self._began.pop(job.trial_id, now))):
            self._storage.set_trial_user_attr(job.trial_id, name, own.get(name, 0.0) + more)

    def _start(self, trial: FrozenTrial) -> Job | None:
        if not self._storage.set_trial_state_values(trial._trial_id, TrialState.RUNNING):
            return None  # another process has it
        self._mark(trial)
        return self.job(trial)

    def _mark(self, trial: FrozenTrial) -> None:
        """Say who trains a trial, and from when on."""
        self._began[trial._trial_id] = time.monotonic()
        for name, value in (dict.fromkeys(TASKS) | self._workplace.attributes()).items():
            if trial.user_attrs.get(name) != value:
                self._storage.set_trial_user_attr(trial._trial_id, name, value)

    def job(self, trial: FrozenTrial) -> Job:
        """Next job of a trial."""
        settings, rung = trial.user_attrs["settings"], trial.user_attrs["target"]
        config = self._resolve(settings).config
        assert config is not None
        # From the first rung of its bracket on, rungs are counted as the trial meets them.
        place = min(trial.user_attrs["bracket"] + rung, len(self.plan.rungs) - 1)
        last = place == len(self.plan.rungs) - 1
        return Job(trial._trial_id, trial.number, settings, config, place, None if last else self.plan.rungs[place])

    def _promotable(self, waiting: Sequence[FrozenTrial], *, last: bool) -> FrozenTrial | None:
        paused = {trial.number: trial for trial in waiting}
        for bracket in range(len(self.plan.rungs) if len(self.plan.rungs) > 1 else 0):
            reached: dict[int, dict[int, float]] = {}
            for trial in self.trained():
                if trial.user_attrs["bracket"] == bracket and trial.state != TrialState.FAIL:
                    for rung, (_, value) in enumerate(sorted(trial.intermediate_values.items())):
                        reached.setdefault(rung, {})[trial.number] = self._sign * value
            at = {n: len(trial.intermediate_values) - 1 for n, trial in paused.items()}
            chosen = promotable(reached, at, last=last)
            if chosen is not None:
                return paused[chosen]
        return None

    def _draw(self) -> Job | None:
        """Propose until something comes that can be trained and hasn't been."""
        known = {trial.user_attrs["arm"]: trial.number for trial in self.trained()}
        for _ in range(MOST_DRAWS):
            trial_id, settings = self._propose(first=not known)
            resolved = self._resolve(settings)
            if resolved.config is None:
                for name, value in resolved.constraints.items():
                    self._trial(trial_id).set_constraint(name, value)
                self._tell(trial_id, TrialState.PRUNED, reason=f"infeasible: {resolved.reason}")
                continue
            arm = config_hash(resolved.config, with_seed=False)
            if arm in known:
                self._tell(trial_id, TrialState.PRUNED, reason=f"the same config as trial {known[arm]}")
                continue
            return self._admit(trial_id, arm, settings, index=len(known))
        self._storage.set_study_user_attr(self._id, "exhausted", True)
        return None

    def _admit(self, trial_id: int, arm: str, settings: Mapping[str, Level], index: int) -> Job:
        hyperband = self.plan.search.chosen_pruner == "hyperband"
        bracket = bracket_of(index, len(self.plan.rungs)) if hyperband else 0
        self._mark(self._storage.get_trial(trial_id))
        attributes: dict[str, Any] = {"bracket": bracket, "target": 0, "settings": dict(settings), "arm": arm}
        for name, value in attributes.items():  # the arm last: without it the trial was never admitted
            self._storage.set_trial_user_attr(trial_id, name, value)
        return self.job(self._storage.get_trial(trial_id))

    def _propose(self, *, first: bool) -> tuple[int, dict[str, Level]]:
        """A new trial and its point. The first is the control's, as near as the group can come to it."""
        trial_id = self._storage.create_new_trial(self._id)
        if first and not any("fixed_params" in trial.system_attrs for trial in self.trials()):
            near = {k: v for k, v in self._resolver.control_settings.items() if k not in self.group.fixed}
            self._storage.set_trial_system_attr(trial_id, "fixed_params", parameters(near, self.plan.search))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            return trial_id, draw(self._trial(trial_id), self.plan.search, self.group.fixed)

    def _trial(self, trial_id: int) -> Trial:
        number = self._storage.get_trial_number_from_id(trial_id)
        sampler = sampler_for(self.plan.search, self.group.label, number)
        view: Any = SamplerView(self._storage)
        return Trial(optuna.Study(self.group.study, view, sampler, NopPruner()), trial_id)

    def _resolve(self, settings: Mapping[str, Level]) -> Resolved:
        key = tuple(settings.items())
        if key not in self._draws:
            self._draws[key] = self._resolver.resolve(settings)
        return self._draws[key]


def objectives(plan: SearchPlan, metrics: Mapping[str, float]) -> list[float] | str:
    """A run's values in the order of the objectives, or which of them isn't a finite number."""
    values = [metrics.get(name) for name in plan.design.metrics]
    for name, value in zip(plan.design.metrics, values, strict=True):
        if value is None or not math.isfinite(value):
            return f"its record has no finite {METRICS[name].label} ({name})"
    return [float(value) for value in values if value is not None]
