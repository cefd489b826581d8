"""A planned run as Optuna sees it, the deaths of its workers, and the record of one that couldn't write its own."""

import itertools
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from core.config.run import to_dict
from core.errors import UserError
from core.records.provenance import describe, slurm_job
from core.records.run_record import RunRecord, write_atomically
from core.runtime import json_files
from sweeps.runs.folders import LOSSES_FILE, run_folder
from sweeps.storage.retrying import PatientStorage
from sweeps.storage.submissions import folder_id
from sweeps.studies.plan import Plan, PlannedRun, Sweep

Key = tuple[str, str]  # run hash and data fingerprint: what makes two runs the same run


class Waiting(NamedTuple):
    """A trial that waits: of which run, and how many trials of it there were before (None: an earlier version didn't say)."""

    trial_id: int
    key: Key
    before: int | None


def waiting_runs(storage: PatientStorage, study_id: int) -> list[Waiting]:
    """The trials of a study that wait for a worker, in the order in which they were added."""
    found = storage.waiting(study_id, ("run_hash", "data_fingerprint", "before"))
    return [
        Waiting(trial_id, (own.get("run_hash", ""), own.get("data_fingerprint", "")), own.get("before"))
        for trial_id, own in sorted(found.items())
    ]


def key_of(trial: FrozenTrial) -> Key:
    """Key of a trial's run; empty for a trial that another program added."""
    return trial.user_attrs.get("run_hash", ""), trial.user_attrs.get("data_fingerprint", "")


def by_run(trials: Iterable[FrozenTrial]) -> dict[Key, list[FrozenTrial]]:
    """Trials by their run's key, those of other programs left out."""
    found = defaultdict(list)
    for trial in trials:
        if any(key_of(trial)):
            found[key_of(trial)].append(trial)
    return found


def describe_run(plan: Plan, run: PlannedRun, out: Path, names: Mapping[str, str], before: int = 0) -> FrozenTrial:
    """A trial for a run that waits, not yet in a storage.

    names: from `parameter_names`; out: the folder of runs; before: how many of the run's there are already.
    """
    levels = {factor.key: factor.levels for factor in plan.design.factors}
    return create_trial(
        state=TrialState.WAITING,
        params={names[key]: level for key, level in run.settings.items()},
        distributions={names[key]: CategoricalDistribution(levels[key]) for key in run.settings},
        user_attrs={
            "arm": run.arm,
            "seed": run.seed,
            "run_hash": run.run_hash,
            "arm_hash": run.arm_hash,
            "data_fingerprint": run.fingerprint,
            "metric": plan.design.metric,
            "settings": dict(run.settings),
            "folder": run_folder(plan, run, out).relative_to(out).as_posix(),
            "before": before,
        },
    )


def as_ended(trial: FrozenTrial, record: RunRecord, said: Mapping[str, str], value: float | None) -> FrozenTrial:
    """A trial as it ended, when its run's record says: with what else it is to say, and a value, or None where it failed."""
    ended = create_trial(
        state=TrialState.FAIL if value is None else TrialState.COMPLETE,
        value=value,
        params=trial.params,
        distributions=trial.distributions,
        user_attrs={**trial.user_attrs, **said},
    )
    if record.started_at and record.finished_at:
        ended.datetime_start, ended.datetime_complete = map(_moment, (record.started_at, record.finished_at))
    return ended


def _moment(text: str) -> datetime:
    """A record's time as Optuna has it: this machine's, without saying so."""
    return datetime.fromisoformat(text).astimezone().replace(tzinfo=None)


def parameter_names(plan: Plan, trials: Sequence[FrozenTrial]) -> dict[str, str]:
    """The parameter that records each factor, by config key.

    A parameter's choices can't change within an Optuna study. When a factor's levels do, its later trials are recorded
    under the next free name: "model.top_k", then "model.top_k#2".
    """
    seen: dict[str, BaseDistribution] = {}
    for trial in trials:
        for name, distribution in trial.distributions.items():
            seen.setdefault(name, distribution)
    names = {}
    for factor in plan.design.factors:
        wanted, name, number = CategoricalDistribution(factor.levels), factor.key, 1
        while seen.get(name, wanted) != wanted:
            number += 1
            name = f"{factor.key}#{number}"
        names[factor.key] = name
    return names


def keep_to_folder(study: optuna.Study, out: Path, question: str) -> str:
    """Mark a study as this folder's of runs, and return the folder's name. Raises UserError where it is another's."""
    mine, owner = folder_id(out), study.user_attrs.get("folder_id")
    if owner is None:
        study.set_user_attr("folder_id", mine)
        study.set_user_attr("question", question)
    elif owner != mine:
        raise UserError(
            f"storage: its study '{study.study_name}' belongs to another folder of runs than {out}; use that folder, or "
            "another storage (each folder of runs needs its own database)"
        )
    return mine


def failed_record(plan: Sweep, run: PlannedRun, reason: str) -> RunRecord:
    """The record of a run that couldn't write its own."""
    return RunRecord(
        status="failed",
        reason=reason,
        run_hash=run.run_hash,
        arm_hash=run.arm_hash,
        seed=run.seed,
        config=to_dict(run.config),
        data_fingerprint=run.fingerprint,
        provenance=describe("cpu") | slurm_job(),
        study=plan.study_field(run),
    )


def note_death(folder: Path, trial: FrozenTrial, step: int | None = None) -> int:
    """Count the death of a trial's worker, once however often it is noted. step: of the checkpoint that is left.

    Returns how many there were since the run last came further: one that gets on, however slowly, isn't given up.
    """
    own = trial.user_attrs
    death = f"process {own.get('pid')} of {own.get('host')}, which began at {trial.datetime_start}"
    deaths = _deaths(folder)
    if death not in (known for known, _ in deaths):
        deaths.append((death, step))
        write_atomically(folder / LOSSES_FILE, json.dumps(deaths, indent=2) + "\n")
    return sum(1 for _ in itertools.takewhile(lambda each: each[1] == deaths[-1][1], reversed(deaths)))


def forget_deaths(folder: Path) -> None:
    """Count anew from here on."""
    (folder / LOSSES_FILE).unlink(missing_ok=True)


def _deaths(folder: Path) -> list[tuple[str, int | None]]:
    try:
        found = json_files.read(folder / LOSSES_FILE)
    except (FileNotFoundError, json_files.DamagedFileError):
        return []
    pairs = found if isinstance(found, list) else []
    return [(str(pair[0]), pair[1]) for pair in pairs if isinstance(pair, list) and len(pair) == 2]
