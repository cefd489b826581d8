"""Results of a search, read from its records, and the runs that confirm it."""

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from core.errors import UserError
from core.records import designs, run_record
from core.records.designs import Design, DesignFactor, SearchDesign
from core.records.run_folders import list_runs
from core.records.run_record import OutOfReachError, RunRecord, UnreadableRecordError
from core.runtime import json_files
from core.runtime.json_files import CONVERSION_ERRORS, DamagedFileError, Whole
from core.runtime.units import below, ranked
from sweeps.search.plan import SearchPlan, described, differing
from sweeps.search.spec import arm_name
from sweeps.studies.arms import Arm, ResolvedArm, describe_arm, planned_runs
from sweeps.studies.plan import Plan
from sweeps.studies.study import CONFIRM, Level

FACTOR = "configuration"  # its only factor


@dataclass(frozen=True)
class Configuration:
    """One configuration of a search and its runs.

    status: "complete" when every seed is; "failed" when one is; else "paused", where training went no further (yet).
    curves: the first objective's mean over seeds by training tokens of one run; values: the objectives' means at the end
    (empty before). tokens: trained, over all seeds.
    """

    arm: str
    trial: int
    group: str
    settings: Mapping[str, Level]
    status: str
    reason: str
    values: tuple[float, ...]
    seed_values: tuple[float, ...]
    curve: Mapping[float, float]
    tokens: float
    finished_at: str
    records: tuple[RunRecord, ...] = field(repr=False)


@dataclass(frozen=True)
class Entry:
    """Entry of a configuration in its search: its trial, from the file beside its runs."""

    trial: Whole
    group: str
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class Results:
    """The configurations of one search, in the order of their trials."""

    design: SearchDesign
    configurations: tuple[Configuration, ...]
    unreadable: tuple[str, ...]

    @classmethod
    def load(cls, folder: Path, design: SearchDesign | None = None) -> "Results | None":
        """The search last run in a folder, or that of a design; None where there is none.

        Records of an earlier space or budget are left out.
        """
        path = folder / designs.FILE_NAME
        if design is None:
            try:
                design = SearchDesign.read(path)
            except FileNotFoundError:
                return None
            except DamagedFileError as error:
                raise UserError(f"{path} is damaged ({error}): `ablate run` of the search writes it again") from None
        found, unreadable = [], list[str]()
        for path in _entries(folder, entry_file(design.identity)):
            runs = list(_runs(path.parent, unreadable))
            try:
                found += [_configuration(read_entry(path), runs, design)] if runs else []
            except FileNotFoundError:
                continue
            except DamagedFileError as error:
                unreadable.append(f"{path}: {error}")
        return cls(design, tuple(sorted(found, key=lambda c: (c.group, c.trial))), tuple(unreadable))

    @property
    def complete(self) -> list[Configuration]:
        return [found for found in self.configurations if found.status == "complete"]

    def groups(self) -> dict[str, list[Configuration]]:
        """Configurations by the level of what is compared."""
        found: dict[str, list[Configuration]] = {}
        for configuration in self.configurations:
            found.setdefault(configuration.group, []).append(configuration)
        return found

    def best(self, group: str, objective: int = 0) -> Configuration | None:
        """The best complete configuration of a group in one objective: the best of many looks better than it is."""
        sign = 1 if self.design.goals[objective] == "min" else -1
        among = sorted((c for c in self.complete if c.group == group), key=lambda c: c.trial)
        return among[ranked([sign * c.values[objective] for c in among])[0]] if among else None

    def pareto(self, group: str) -> list[Configuration]:
        """The complete configurations that no other is at least as good as in every objective and better in one."""
        signs = np.array([1 if goal == "min" else -1 for goal in self.design.goals])
        among = [c for c in self.complete if c.group == group]
        losses = [signs * np.array(c.values) for c in among]
        return [c for c, own in zip(among, losses, strict=True) if not any(_dominates(other, own) for other in losses)]

    def finalists(self) -> dict[str, Configuration]:
        """Arms of the confirmation beside the control: of each group, the best in every objective, by arm name."""
        chosen: dict[str, Configuration] = {}
        for group in self.groups():
            for objective, metric in enumerate(self.design.metrics):
                best = self.best(group, objective)
                if best is None or best.arm in {c.arm for c in chosen.values()}:
                    continue
                several = [group] if group else []
                several += [metric.rsplit("/", 1)[-1]] if len(self.design.metrics) > 1 else []
                chosen["-".join(["winner", *several])] = best
        return chosen


def _dominates(one: np.ndarray, other: np.ndarray) -> bool:
    pairs = list(zip(one.tolist(), other.tolist(), strict=True))
    return any(below(a, b) for a, b in pairs) and not any(below(b, a) for a, b in pairs)


def entry_file(identity: str) -> str:
    """The file beside a configuration's runs that says which trial of a search it is.

    Not in the records alone: a run that an earlier search trained is taken over as it is.
    """
    return f"search-{identity}.json"


def _runs(folder: Path, unreadable: list[str]) -> Iterator[RunRecord]:
    for file in list_runs(folder, depth=1).records:
        try:
            yield run_record.read(file)
        except FileNotFoundError:  # set aside since it was listed
            continue
        except (UnreadableRecordError, OutOfReachError) as error:
            unreadable.append(str(error))


def _entries(folder: Path, name: str) -> list[Path]:
    """The files of that name beside configurations' runs, each once by whatever names it is reached."""
    found: dict[str, Path] = {}
    for path in sorted(folder.glob(f"*/{name}"), key=lambda path: (path.parent.is_symlink(), path)):
        found.setdefault(os.path.realpath(path), path)
    return list(found.values())


def read_entry(path: Path) -> Entry:
    """Read a configuration's entry. Raises FileNotFoundError, and DamagedFileError for a file that doesn't say."""
    try:
        return msgspec.convert(json_files.read(path), Entry)
    except CONVERSION_ERRORS:
        raise DamagedFileError("says of no trial") from None


def _configuration(entry: Entry, runs: Sequence[RunRecord], design: SearchDesign) -> Configuration:
    by_seed = {run.seed: run for run in runs}
    runs = [by_seed[seed] for seed in design.seeds if seed in by_seed]
    failed = [run for run in runs if run.status == "failed"]
    rows = [[run.metrics.get(metric, math.nan) for metric in design.metrics] for run in runs]
    whole = len(runs) == len(design.seeds) and all(run.status == "complete" for run in runs)
    finite = whole and all(value is not None and math.isfinite(value) for row in rows for value in row)
    status = "complete" if finite else "failed" if failed or whole else "paused"
    return Configuration(
        arm=arm_name(runs[0].arm_hash),
        trial=entry.trial,
        group=entry.group,
        settings=entry.settings,
        status=status,
        reason=(failed[0].reason or "")
        if failed
        else "no finite value"
        if whole and not finite
        else runs[0].reason or "",
        values=tuple(float(v) for v in np.mean(rows, axis=0)) if finite else (),
        seed_values=tuple(float(row[0]) for row in rows) if finite else (),
        curve=_curve(runs, design),
        tokens=sum((run.validation.get("tokens") or run.curve.get("tokens") or [0.0])[-1] for run in runs),
        finished_at=max(run.finished_at for run in runs),
        records=tuple(runs),
    )


def _curve(runs: Sequence[RunRecord], design: SearchDesign) -> dict[float, float]:
    """The first objective by step, where every seed of the search has a finite value."""
    found: dict[float, list[float]] = {}
    for run in runs:
        column = run.validation.get(design.metrics[0], [])
        for step, value in zip(run.validation.get("step", []), column, strict=False):
            if value is not None and math.isfinite(value):
                found.setdefault(step, []).append(value)
    return {
        step: sum(values) / len(values) for step, values in sorted(found.items()) if len(values) == len(design.seeds)
    }


def confirmation(plan: SearchPlan, results: Results) -> Plan:
    """The ablation that confirms a search: the control and the finalists, each on the fresh seeds, paired.

    The control is the first arm; where a finalist is the control, it stands for both.
    """
    resolver = plan.resolver
    chosen = {name: found for name, found in results.finalists().items() if found.arm != plan.design.control}
    settings = [resolver.control_settings, *(found.settings for found in chosen.values())]
    configs = [resolver.control, *(resolver.resolve(found.settings).config for found in chosen.values())]
    arms = []
    for name, own, config, differs in zip(("control", *chosen), settings, configs, differing(settings), strict=True):
        assert config is not None  # it was trained
        label = f"{name}: {described(differs)}" if differs else name
        arms.append((Arm(name, label, own), config))
    search, design = plan.search, plan.design
    confirming = Design(
        ablation=plan.study_name,
        size=CONFIRM,
        question=search.question,
        base=search.base,
        metric=design.primary,
        secondary=(*design.metrics[1:], *search.secondary),
        margin=search.margin,
        alpha=search.alpha,
        power=search.power,
        control="control",
        seeds=plan.fresh_seeds,
        factors=(DesignFactor(FACTOR, FACTOR, tuple(arm.name for arm, _ in arms)),),
        arms=tuple(describe_arm(arm, config) for arm, config in arms),
        contrasts=(),
        overrides=design.overrides,
        devices=plan.devices,
        data_fingerprint=design.data_fingerprint,
        command=design.command,
        search=design.identity,
    )
    data = design.data_fingerprint
    told = ((ResolvedArm(replace(arm, settings={FACTOR: arm.name}), config), data, "") for arm, config in arms)
    runs = planned_runs(told, plan.fresh_seeds)
    return Plan(name=plan.study_name, size=CONFIRM, design=confirming, runs=runs)


def confirmation_here(plan: SearchPlan, out: Path) -> Plan | None:
    """The ablation that confirms what lies in a folder of runs; None before a configuration is trained to the end.

    Also where the folder was last searched with another budget: what is there may not be all.
    """
    last = Results.load(out / plan.study_name)
    if last is None or _budget(last.design) != _budget(plan.design):
        return None
    return confirmation(plan, last) if last.complete else None


def _budget(design: SearchDesign) -> tuple[Any, ...]:
    return design.identity, design.trials, design.tokens
