"""A study of logged runs, for the judges and reports of studies of our own."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from analysis.logs.runs import LoggedRun
from analysis.study import Study
from core.errors import UserError
from core.records.designs import Design, DesignArm, DesignFactor, LogsDesign, ParameterCounts
from core.records.metrics import METRICS, Metric
from core.records.run_record import RunRecord
from core.registry import nearest

SMALLER = (
    "loss",
    "nll",
    "nelbo",
    "perplexity",
    "ppl",
    "bits",
    "error",
    "wer",
    "fid",
)  # parts of names of what is better small

LOGGED = "as the logs have it"  # the meaning of a metric that isn't ours


@dataclass(frozen=True)
class Asked:
    """Declaration of a comparison of logs. goals: "min" or "max" by metric, the first of which decides."""

    name: str
    question: str
    control: str
    goals: Mapping[str, str]
    margin: float | None = None
    alpha: float = 0.05
    power: float = 0.8
    command: str = ""


def goal_of(metric: str, said: str | None) -> tuple[str, str]:
    """The better direction of a metric, and a note where its name alone tells. Raises UserError where nothing does."""
    if said is not None:
        return said, ""
    if metric in METRICS and METRICS[metric].meaning != LOGGED:
        return METRICS[metric].goal, ""
    if any(part in metric.lower() for part in SMALLER):
        return (
            "min",
            f"A smaller {metric} is taken to be better, as its name says (--metric {metric}:max for the contrary)",
        )
    raise UserError(f"--metric {metric}: which is better? Write {metric}:min or {metric}:max")


def study_of(
    runs: Sequence[LoggedRun], asked: Asked, sources: Sequence[str], notes: Sequence[str], *, step: str | None
) -> Study:
    """The study that runs make up: the control first, then arms as they appear, over the seeds of any.

    step: the column that curves run over; None: there are none. Raises UserError for a control that no run is of, for a
    single arm, and where no seed has a run of the control and of another arm.
    """
    arms = list(dict.fromkeys(run.arm for run in runs))
    if asked.control not in arms:
        raise UserError(f"--control: no run is of '{asked.control}': {nearest(asked.control, arms)}")
    if len(arms) < 2:
        raise UserError(f"all runs are of '{asked.control}': a comparison takes another arm too")
    _check_pairs(runs, asked.control)
    for metric, goal in asked.goals.items():
        _register(metric, goal)
    order = [asked.control, *(arm for arm in arms if arm != asked.control)]
    seeds = tuple(sorted({run.seed for run in runs}))
    design = Design(
        kind="logs", ablation=asked.name, size="full", question=asked.question, control=asked.control, seeds=seeds,
        metric=next(iter(asked.goals)), secondary=tuple(asked.goals)[1:], margin=asked.margin, alpha=asked.alpha,
        power=asked.power, factors=(DesignFactor("arm", "arm", tuple(order)),), base="", contrasts=(), overrides=(),
        devices=1, data_fingerprint="", command=asked.command,
        arms=tuple(
            DesignArm(name=arm, label=arm, settings={"arm": arm}, hash=_hash(arm), parameters=ParameterCounts(0, 0),
                      flops_per_token=0.0, notes=())
            for arm in order
        ),
        logs=LogsDesign(tuple(sources), (*notes, *unknown(runs, order, seeds, steps=step is not None)), _axis(step)),
    )  # fmt: skip
    study = Study.of([_record(run, asked, steps=step is not None) for run in runs], design)
    assert study is not None
    return study


def _axis(step: str | None) -> str:
    return "steps" if step is None or "step" in step.lower() else step


def _check_pairs(runs: Sequence[LoggedRun], control: str) -> None:
    own = {run.seed for run in runs if run.arm == control}
    if not any(run.seed in own for run in runs if run.arm != control):
        others = sorted({run.seed for run in runs if run.arm != control})
        raise UserError(
            f"no seed has a run of {control} (seeds {_listed(sorted(own))}) and of another arm (seeds {_listed(others)}): "
            "verdicts compare runs of one seed"
        )


def _listed(seeds: Sequence[int]) -> str:
    return ", ".join(map(str, seeds[:6])) + (", ..." if len(seeds) > 6 else "")


def unknown(runs: Sequence[LoggedRun], arms: Sequence[str], seeds: Sequence[int], *, steps: bool) -> list[str]:
    """Notes on what the logs don't tell, and on what they lack."""
    there = {(run.arm, run.seed) for run in runs}
    lacking = {arm: [seed for seed in seeds if (arm, seed) not in there] for arm in arms}
    notes = [
        f"{arm} has no run of seed{'s' * (len(missing) > 1)} {_listed(missing)}, so these are left out of its comparison"
        for arm, missing in lacking.items()
        if missing
    ]
    notes.append(
        "Whether runs of one seed share initial weights and data order isn't in the logs. Pairs by seed are valid either "
        "way; they gain precision only where runs do share them"
    )
    notes.append("Whether all runs saw the same data and the same validation set isn't in the logs")
    if not steps:
        notes.append("Whether all runs were trained equally long isn't in the logs (--step names the column of steps)")
    return notes


def _register(metric: str, goal: str) -> None:
    """Let reports know a metric that isn't ours."""
    known = next((each for each in METRICS.entries() if each.name == metric and each.meaning != LOGGED), None)
    if known is not None and known.goal != goal:
        raise UserError(f"--metric {metric}:{goal}: {known.goal} is the better direction of {known.label}")
    if known is None:
        METRICS.add(Metric(metric, metric, "", "max" if goal == "max" else "min", LOGGED))


def _hash(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def _record(run: LoggedRun, asked: Asked, *, steps: bool) -> RunRecord:
    """A run's record. Where a secondary metric has no last value, the record lacks it."""
    metrics = {name: run.values[name][last] for name in asked.goals if (last := run.last(name)) is not None}
    curves = _curves(run, list(asked.goals)) if steps else {}
    return RunRecord(
        status="failed" if run.trouble else "complete",
        reason=run.trouble or None,
        run_hash=_hash(run.arm, run.seed),
        arm_hash=_hash(run.arm),
        seed=run.seed,
        config=run.settings,
        metrics={} if run.trouble else metrics,
        validation=curves,
        provenance={},
        study={"ablation": asked.name, "arm": run.arm},
    )


def _curves(run: LoggedRun, metrics: Sequence[str]) -> dict[str, list[float]]:
    """Columns of the steps at which every metric of the run was logged; those of the first alone where there is none."""
    steps = {step for step in run.values[metrics[0]] if step > 0}  # learning speed is by the logarithm
    shared = [name for name in metrics if steps & set(run.values[name]) == steps]
    ordered = sorted(steps)
    columns = {name: [run.values[name][step] for step in ordered] for name in shared}
    return {"step": ordered, "tokens": ordered, **columns}
