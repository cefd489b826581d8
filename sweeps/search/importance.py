"""Importance of parameters for being among the best, with that expected by chance in unguided searches.

PED-ANOVA (arXiv 2304.10255; conditional spaces: 2601.20800), as Optuna computes it. It lives here, not in analysis, because
it needs Optuna's distributions and estimators. An importance has no unit and is never zero: it is tested beside the
importances of the same points with their values shuffled. That is a null distribution only where points were drawn without a
look at values: a guided sampler crowds its points where values were good, by chance too, so shuffled values aren't what it
would have seen had nothing mattered.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.importance import PedAnovaImportanceEvaluator
from optuna.trial import create_trial

from sweeps.search.space import distributions, parameters
from sweeps.search.spec import Search
from sweeps.studies.study import Level

FEWEST_POINTS = 10
ROUNDING = 1e-9  # importances that differ by less are equal: a shuffle that changes no group gives the same one
TARGET_QUANTILE = 0.2  # being among the best fifth: a tenth of a small search is two or three points


@dataclass(frozen=True)
class Importance:
    """One parameter. null: the 95 % quantile of its importances under shuffled values; pvalue: of importances this large
    under them, (1 + count) / (1 + shuffles); both None after a guided search."""

    parameter: str
    importance: float
    null: float | None
    pvalue: float | None


def importances(
    search: Search,
    points: Sequence[Mapping[str, Level]],
    losses: Sequence[float],
    *,
    rng: np.random.Generator,
    shuffles: int = 200,
) -> list[Importance]:
    """The importance of every parameter, the most important first; none for fewer than 10 points.

    points: settings of configurations; losses: (N,) their values at equal tokens, smaller = better.
    """
    if len(points) < FEWEST_POINTS:
        return []
    known: dict[str, BaseDistribution] = {}
    for key, parameter in search.space.items():
        known |= distributions(key, parameter)
    drawn = [parameters(point, search) for point in points]
    varied = [name for name in known if len({repr(point.get(name)) for point in drawn}) > 1]
    values = np.asarray(losses, dtype=float)
    found = _evaluate(drawn, values, known, varied)
    if search.guided:
        rows = [Importance(name, own, None, None) for name, own in zip(varied, found, strict=True)]
        return sorted(rows, key=lambda row: -row.importance)
    shuffled = np.array([_evaluate(drawn, rng.permutation(values), known, varied) for _ in range(shuffles)])
    rows = []
    for name, own, null in zip(varied, found, shuffled.T, strict=True):
        pvalue = (1 + (null >= own * (1 - ROUNDING)).sum()) / (1 + shuffles)
        rows.append(Importance(name, own, float(np.quantile(null, 0.95)), float(pvalue)))
    return sorted(rows, key=lambda row: (row.pvalue, -row.importance))


def _evaluate(
    drawn: Sequence[Mapping[str, Level]],
    values: np.ndarray,
    known: Mapping[str, BaseDistribution],
    names: Sequence[str],
) -> list[float]:
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # else it tells of each of these studies
    study = optuna.create_study()
    for point, value in zip(drawn, values, strict=True):
        used = {name: known[name] for name in point}
        study.add_trial(create_trial(params=dict(point), distributions=used, value=float(value)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = PedAnovaImportanceEvaluator(target_quantile=TARGET_QUANTILE).evaluate(study, params=list(names))
    return [float(found[name]) for name in names]
