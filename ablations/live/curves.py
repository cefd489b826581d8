"""Learning curves by arm: finished runs from their records, runs in training from their progress."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ablations.live.reading import LOSS
from analysis.frame import Study

POINTS = 60
Run = tuple[np.ndarray, np.ndarray]  # (T,) tokens and (T,) values


def curves(study: Study, training: Iterable[tuple[str, Mapping[str, Any]]]) -> dict[str, Any]:
    """Of each arm, "validation" (the primary metric) and "loss": columns "tokens", "mean", "sd", "n" over its runs.

    training: of each run in training, its arm and its progress. Failed runs are left out. Runs that haven't come so far count
    up to where they are; sd is None where a single one is left.
    """
    tables = {"validation": ("validation", study.design["metric"]), "loss": ("curve", LOSS)}
    under_way = list(training)
    found: dict[str, Any] = {}
    for arm in study.arms:
        found[arm] = {}
        for name, (table, column) in tables.items():
            runs = list(study.series(arm, table, column).values())
            runs += [run for own, progress in under_way if own == arm for run in _in_training(progress, column)]
            found[arm][name] = band(runs)
    return found


def band(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """Mean and standard deviation of runs on the points of the longest one, thinned to POINTS; none without a run."""
    runs = [(tokens_T, values_T) for tokens_T, values_T in runs if len(tokens_T)]
    if not runs:
        return {"tokens": [], "mean": [], "sd": [], "n": []}
    grid_T = max((tokens_T for tokens_T, _ in runs), key=lambda tokens_T: (tokens_T[-1], len(tokens_T)))
    if len(grid_T) > POINTS:
        grid_T = grid_T[np.unique(np.linspace(0, len(grid_T) - 1, POINTS).round().astype(int))]
    values_ST = np.array([np.interp(grid_T, *run, left=np.nan, right=np.nan) for run in runs])
    n_T = np.isfinite(values_ST).sum(0)
    filled_ST = np.where(np.isfinite(values_ST), values_ST, 0.0)
    mean_T = filled_ST.sum(0) / np.maximum(1, n_T)
    square_ST = np.where(np.isfinite(values_ST), (values_ST - mean_T) ** 2, 0.0)
    sd_T = np.sqrt(square_ST.sum(0) / np.maximum(1, n_T - 1))
    kept = n_T > 0
    rows = zip(grid_T[kept], mean_T[kept], sd_T[kept], n_T[kept], strict=True)
    columns: dict[str, list[Any]] = {"tokens": [], "mean": [], "sd": [], "n": []}
    for tokens, mean, sd, n in rows:
        for name, value in zip(
            columns, (float(tokens), float(mean), float(sd) if n > 1 else None, int(n)), strict=True
        ):
            columns[name].append(value)
    return columns


def _in_training(progress: Mapping[str, Any], column: str) -> list[Run]:
    told = progress.get("curves", {}).get(column)
    if not told or not told["step"] or not progress.get("tokens_per_step"):
        return []
    return [(np.array(told["step"], float) * progress["tokens_per_step"], np.array(told["value"], float))]
