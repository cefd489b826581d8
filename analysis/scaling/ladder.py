"""A ladder's records -> its law: what the loss is at other scales, and what becomes of the routers."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from analysis.scaling.extrapolation import (
    Extrapolation,
    distinct,
    extrapolations,
    judged_points,
    undetermined,
    weaknesses,
)
from analysis.scaling.families import Form, Runs, choose, compare, fit
from analysis.scaling.isoflop import Cost, Minimum, counted_cost, law_minimum, measured_minimum
from analysis.scaling.law import ScalingLaw, checked
from analysis.scaling.trend import Interval, Trend, fit_trend
from analysis.study import Study
from core.errors import UserError
from core.records.designs import Design, DesignArm
from core.records.metrics import METRICS, metrics_in
from core.runtime.units import counted

BOOTSTRAP = 200

FEW_EPOCHS = 4  # up to so many, repeated tokens are worth about as much as new ones (arXiv 2305.16264)

VAGUE = 100.0  # a band whose ends differ by more than this factor says nothing

PLAIN = Form("one law", (), 5, None)


@dataclass(frozen=True)
class Point:
    """A model on a number of tokens, and what its n finished seeds came to (None where none did).

    parameters: active; flops: counted, of the whole run; budget: None outside of the IsoFLOP design.
    """

    label: str
    family: str
    parameters: float
    tokens: float
    flops: float
    flops_per_token: float
    budget: float | None
    sparsity: float
    granularity: float
    epochs: float
    n: int
    loss: float | None
    health: Mapping[str, float]


@dataclass(frozen=True)
class Coefficients:
    """A law's coefficients with bootstrap intervals. families: whose it is."""

    families: tuple[str, ...]
    values: Mapping[str, Interval]
    residual: float
    ranges: Mapping[str, tuple[float, float]]


@dataclass(frozen=True)
class Optimum:
    """The best model of a family for a budget of counted FLOPs. measured: None where no valley was trained; the rest, by the
    law: None where the runs don't determine it."""

    family: str
    flops: float
    measured: Minimum | None
    parameters: Interval | None = None
    tokens: Interval | None = None
    loss: float | None = None


@dataclass(frozen=True)
class Health:
    """A router's metric against scale in one sparse family. at: its value at each target; bound: the largest possible."""

    metric: str
    family: str
    trend: Trend
    at: Mapping[str, Interval]
    bound: float | None


@dataclass(frozen=True)
class Ladder:
    """Points and settings of a ladder.

    laws: by family, the same one where they share it; empty where none could be fitted, and `notes` say why. weak: why the
    runs don't determine the law, and then nothing is extrapolated. floor: NELBO of the source's exact posterior on the
    validation masks, where it is known.
    """

    metric: str
    points: tuple[Point, ...]
    forms: tuple[Form, ...]
    form: Form
    coefficients: tuple[Coefficients, ...]
    optima: tuple[Optimum, ...]
    extrapolations: tuple[Extrapolation, ...]
    health: tuple[Health, ...]
    floor: float | None
    notes: tuple[str, ...]
    targets: Mapping[str, Mapping[str, float]]
    weak: tuple[str, ...] = ()
    laws: Mapping[str, ScalingLaw] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Every number of it but the bootstrap's single refits."""
        content = asdict(self)
        del content["laws"]
        return content

    def cost(self, family: str) -> Cost:
        """Counted training FLOPs per token at N active parameters."""
        own = [point for point in self.points if point.family == family]
        return counted_cost([point.parameters for point in own], [point.flops_per_token for point in own])

    def modifiers(self, family: str) -> dict[str, float]:
        """Arguments of the law for a family beside N and D."""
        point = next(point for point in self.points if point.family == family)
        return {name: getattr(point, name) for name in self.laws[family].modifiers}


def unfittable(design: Design) -> str:
    """Reason why no law could be fitted to a ladder if all runs finished; empty if one could."""
    parameters = [arm.parameters.active for arm in design.arms]
    tokens = [arm.point.tokens for arm in design.arms if arm.point is not None]
    try:
        checked({"parameters": parameters, "tokens": tokens, "loss": np.ones(len(parameters))})
    except UserError as error:
        return str(error)
    return ""


def fit_ladder(study: Study, *, bootstrap: int = BOOTSTRAP) -> Ladder:
    """Fit everything that a ladder is declared for. What can't be fitted is a line of `notes`, never an error."""
    design, notes = study.design, []
    assert design.ladder is not None
    targets = {name: asdict(target) for name, target in design.ladder.targets.items()}
    points = tuple(_point(study, arm) for arm in design.arms)
    runs = _runs(study, points)
    forms: tuple[Form, ...] = ()
    laws: Mapping[str, ScalingLaw] = {}
    try:
        forms = compare(runs)
    except UserError as error:
        notes.append(f"no form was judged on the largest models, since without them too little is left ({error})")
    form = PLAIN
    try:
        if len(forms) == 1 and forms[0].error is None:
            notes.append(
                "the only form couldn't be judged on the largest models: the runs without them don't determine it"
            )
        elif forms:
            form = choose(forms)
        laws = _determined(runs, form, targets, bootstrap)
    except UserError as error:
        notes.append(f"no law: {error}")
    weak = weaknesses(laws, runs)
    found = Ladder(
        metric=design.metric,
        points=points,
        forms=forms,
        form=form,
        coefficients=_coefficients(laws),
        optima=(),
        extrapolations=() if weak else extrapolations(laws, runs, targets),
        health=_health(points, targets, notes),
        floor=_floor(study),
        notes=(*notes, *_remarks(study, points)),
        targets=targets,
        weak=tuple(weak),
        laws=laws,
    )
    return replace(found, optima=_optima(found)) if laws else found


def _determined(
    runs: Runs, form: Form, targets: Mapping[str, Mapping[str, float]], bootstrap: int
) -> Mapping[str, ScalingLaw]:
    """The form's laws. Raises UserError where rounding chose them: what they say would differ on another processor."""
    laws = fit(runs, form, asked=judged_points(runs, targets) if runs.families else None, bootstrap=bootstrap)
    where = undetermined(laws, runs, targets)
    if where:
        raise UserError(f"the runs don't determine “{form.name}”: fits that are equally good differ by {where}")
    return laws


def _point(study: Study, arm: DesignArm) -> Point:
    point, losses = arm.point, study.values(arm.name, study.design.metric)
    assert point is not None
    finished = np.isfinite(losses)
    health = {}
    for metric in metrics_in("health"):
        values = study.values(arm.name, metric)
        values = values[np.isfinite(values)]
        if len(values):  # the geometric mean over seeds: the trend is one of logs
            health[metric] = float(np.exp(np.log(values).mean())) if (values > 0).all() else float(values.mean())
    planned = ("family", "tokens", "flops", "budget", "sparsity", "granularity", "epochs")
    return Point(
        label=arm.label,
        parameters=float(arm.parameters.active),
        flops_per_token=float(arm.flops_per_token),
        n=int(finished.sum()),
        loss=float(losses[finished].mean()) if finished.any() else None,
        health=health,
        **{name: getattr(point, name) for name in planned},
    )


def _runs(study: Study, points: tuple[Point, ...]) -> Runs:
    """Every finished run by itself: a point with more seeds weighs more."""
    rows = [
        (point, float(loss), place)
        for place, (arm, point) in enumerate(zip(study.arms, points, strict=True))
        for loss in study.values(arm, study.design.metric)
        if np.isfinite(loss)
    ]
    names = ("family", "parameters", "tokens", "sparsity", "granularity")
    columns = {name: np.array([getattr(point, name) for point, _, _ in rows]) for name in names}
    return Runs(**columns, loss=np.array([loss for _, loss, _ in rows]), point=np.array([place for *_, place in rows]))


def _coefficients(laws: Mapping[str, ScalingLaw]) -> tuple[Coefficients, ...]:
    rows = []
    for families, law in distinct(laws).items():
        values = {name: float(getattr(law, name)) for name in ("E", "A", "alpha", "B", "beta")} | dict(law.modifiers)
        ends = {name: law.intervals.get(name, (value, value)) for name, value in values.items()}
        intervals = {name: Interval(value, *ends[name]) for name, value in values.items()}
        rows.append(Coefficients(families, intervals, law.residual, law.ranges))
    return tuple(rows)


def _optima(ladder: Ladder) -> tuple[Optimum, ...]:
    rows = []
    for family, law in ladder.laws.items():
        own = [point for point in ladder.points if point.family == family]
        for budget in sorted({point.budget for point in own if point.budget is not None}):
            there = [point for point in own if point.budget == budget and point.loss is not None]
            measured = measured_minimum([p.parameters for p in there], [p.loss for p in there if p.loss is not None])
            by_law = () if ladder.weak else law_minimum(law, budget, ladder.cost(family), ladder.modifiers(family))
            rows.append(Optimum(family, budget, measured, *by_law))
    return tuple(rows)


def _health(
    points: tuple[Point, ...], targets: Mapping[str, Mapping[str, float]], notes: list[str]
) -> tuple[Health, ...]:
    rows = []
    for family in dict.fromkeys(point.family for point in points if point.sparsity > 1):
        for metric in metrics_in("health"):
            own = [point for point in points if point.family == family and metric in point.health]
            try:
                trend = fit_trend([p.parameters for p in own], [p.tokens for p in own], [p.health[metric] for p in own])
            except UserError as error:
                notes.append(f"{METRICS[metric].label} of {family}: no {error}")
                continue
            at = {name: trend.predict(scale["parameters"], scale["tokens"]) for name, scale in targets.items()}
            widest = max(entry.high / entry.low for entry in at.values()) if at else 1.0
            if widest > VAGUE:
                notes.append(
                    f"{METRICS[metric].label} of {family}: at the targets the band spans a factor of {widest:.1g}, so these "
                    "runs say nothing of it there"
                )
            bound = own[0].sparsity - 1 if metric == "load/max_vio" else None
            rows.append(Health(metric, family, trend, at, bound))
    return tuple(rows)


def _floor(study: Study) -> float | None:
    if study.design.metric != "val/nelbo":
        return None
    gaps = [study.values(arm, "val/nelbo") - study.values(arm, "val/excess_nelbo") for arm in study.arms]
    known = np.concatenate(gaps)
    known = known[np.isfinite(known)]
    return float(known.mean()) if len(known) else None


def _remarks(study: Study, points: tuple[Point, ...]) -> list[str]:
    remarks = []
    if study.failed:
        remarks.append(f"{study.failed} runs failed and are left out: a law of what survived may flatter")
    if study.missing:
        remarks.append(f"{counted(study.missing, 'run')} not recorded yet")
    if len(study.design.seeds) == 1:
        remarks.append("one seed a point: intervals come from the scatter of the points around the law")
    most = max(point.epochs for point in points)
    if most > FEW_EPOCHS:
        remarks.append(
            f"up to {most:.3g} epochs of the corpus: repeated tokens are worth less than the law takes them for"
        )
    return remarks
