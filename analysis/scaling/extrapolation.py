"""A law at scales that weren't trained: how far they are, and whether the runs determine the law at all."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from analysis.scaling.families import Runs
from analysis.scaling.fitting import NO_ERROR, UNDETERMINED
from analysis.scaling.isoflop import interval
from analysis.scaling.law import MODIFIERS, ScalingLaw
from analysis.scaling.trend import Interval

NO_FLOOR = 0.01  # of the lowest loss: an E below it is none
SMALLEST = 1.5  # times the smallest N or D: up to there models are the same rung, if of another family
FAR = 1e-2  # spread of log predictions over equally good fits at a target, from which on they say different things
CLEAR = 2.0  # times the scatter, by which a term has to change the loss over the runs


@dataclass(frozen=True)
class Extrapolation:
    """A law at a scale that wasn't trained. beyond: by which factors its N, D (and sparsity) lie outside of the runs.

    optimal_parameters, optimal_tokens: what the law would rather spend the same 6 N D FLOPs on.
    """

    family: str
    target: str
    parameters: float
    tokens: float
    loss: Interval
    beyond: Mapping[str, float]
    optimal_parameters: Interval
    optimal_tokens: Interval


def distinct(laws: Mapping[str, ScalingLaw]) -> dict[tuple[str, ...], ScalingLaw]:
    """Each law once, with the families that share it."""
    sharing: dict[int, list[str]] = {}
    for family, law in laws.items():
        sharing.setdefault(id(law), []).append(family)
    return {tuple(families): laws[families[0]] for families in sharing.values()}


def places(runs: Runs, scale: Mapping[str, float]) -> Runs:
    """A target as each family's model: with the family's own sparsity and granularity, and with the target's."""
    firsts = [int(np.flatnonzero(runs.family == family)[0]) for family in runs.families]
    count, models = len(firsts), runs.where(np.array(firsts * 2))
    wanted = {name: np.full(2 * count, scale[name]) for name in ("parameters", "tokens")}
    for name in MODIFIERS:
        wanted[name] = np.concatenate([getattr(models, name)[:count], np.full(count, scale[name])])
    return replace(models, **wanted)


def judged_points(runs: Runs, targets: Mapping[str, Mapping[str, float]]) -> Runs:
    """Points at which a law has to be determined: the largest models and the targets."""
    parts = [runs.where(runs.largest), *(places(runs, scale) for scale in targets.values())]
    return Runs(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in vars(runs)})


def undetermined(laws: Mapping[str, ScalingLaw], runs: Runs, targets: Mapping[str, Mapping[str, float]]) -> str:
    """Describe where equally good fits disagree, so that rounding chose between them; empty if they agree."""
    limits = [("on these runs", runs, UNDETERMINED)]
    limits += [(f"at {target}", places(runs, scale), FAR) for target, scale in targets.items()]
    for families, law in distinct(laws).items():
        for name, there, limit in limits:
            own = there.where(np.isin(there.family, families))
            told = {key: getattr(own, key) for key in law.modifiers}
            if law.spread(own.parameters, own.tokens, **told) > limit:
                return f"over {limit:.1%} {name}"
    return ""


def weaknesses(laws: Mapping[str, ScalingLaw], runs: Runs) -> list[str]:
    """Reasons why the runs don't determine their law, in lines; empty if they do.

    A term that changes the loss by less than twice the scatter has coefficients that mean nothing; the smallest N or D is
    left out of that, since a huge exponent can explain one model alone. Nor does an E of nearly 0 mean anything.
    """
    said, own_laws = [], distinct(laws)
    for families, law in own_laws.items():
        own = runs.where(np.isin(runs.family, families))
        whose = f" of {' and '.join(families)}" if len(own_laws) > 1 else ""
        told = {name: getattr(own, name) for name in law.modifiers}
        whole = law.predict(own.parameters, own.tokens, **told)
        without_N = law.predict(np.inf, own.tokens, **told)
        without_D = law.predict(own.parameters, np.inf, **told)
        terms = (("N", law.alpha, own.parameters, without_N), ("D", law.beta, own.tokens, without_D))
        for letter, exponent, scale, without in terms:
            if exponent <= 0:
                said.append(
                    f"the term{whose} in {letter} doesn't fall (its exponent is {exponent:.2g}), as a law's does"
                )
                continue
            term = (whole - without)[scale > SMALLEST * scale.min()]
            change = float(np.ptp(term) / np.median(own.loss)) if len(term) else 0.0
            if change < CLEAR * max(law.residual, NO_ERROR):
                said.append(
                    f"the term{whose} in {letter} changes the loss by {change:.1%} above the smallest {letter}, and "
                    f"the scatter is {law.residual:.1%}: its coefficients say nothing"
                )
        if NO_FLOOR * own.loss.min() > law.E:
            said.append(
                f"E{whose} is fitted as 0: over these runs the loss doesn't bend towards a floor as the law has it"
            )
    return said


def extrapolations(
    laws: Mapping[str, ScalingLaw], runs: Runs, targets: Mapping[str, Mapping[str, float]]
) -> tuple[Extrapolation, ...]:
    """Each law at each target: with the families' own sparsity, and where the law knows of it, with the target's."""
    rows = []
    for families, law in distinct(laws).items():
        kinds: dict[str, dict[str, float]] = {" and ".join(families): {}}
        if law.modifiers:
            own = {family: runs.of(family) for family in families}
            kinds = {name: {key: float(getattr(p, key)[0]) for key in law.modifiers} for name, p in own.items()}
        for target, scale in targets.items():
            there = {key: float(scale[key]) for key in law.modifiers}
            name = ", ".join(f"{key} {value:g}" for key, value in there.items())
            wanted = kinds | ({} if there in kinds.values() else {name: there})
            rows += [_extrapolated(law, family, target, scale, modifiers) for family, modifiers in wanted.items()]
    return tuple(rows)


def _extrapolated(
    law: ScalingLaw, family: str, target: str, scale: Mapping[str, float], modifiers: Mapping[str, float]
) -> Extrapolation:
    parameters, tokens = scale["parameters"], scale["tokens"]
    flops = 6 * parameters * tokens
    refits = np.array([one.compute_optimal(flops, **modifiers) for one in law.refits()])
    best = [interval(*pair) for pair in zip(law.compute_optimal(flops, **modifiers), refits.T, strict=True)]
    loss = float(law.predict(parameters, tokens, **modifiers))
    band = Interval(loss, *law.band(parameters, tokens, **modifiers))
    beyond = law.beyond(parameters, tokens, **modifiers)
    return Extrapolation(family, target, parameters, tokens, band, beyond, *best)
