"""Learning curves by arm: finished runs from their records, runs in training from their progress."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ablations.dashboard.record_cache import LOSS
from analysis.study import Study, thinned

POINTS = 60
Run = tuple[np.ndarray, np.ndarray]  # (T,) tokens and (T,) values


class Curves:
    """The curves of a study's arms, of which only those that changed are computed again."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[Any, dict[str, Any]]] = {}

    def of(
        self, study: Study, arm: str, training: Sequence[Mapping[str, Any]], charts: Sequence[str]
    ) -> dict[str, Any]:
        """An arm's "validation" (the primary metric), "loss" and others: columns "tokens", "mean", "sd", "n" over its runs.

        charts: the others, by their names. training: the progress of each of its runs in training. Failed runs are left out.
        Runs that haven't come so far count up to where they are; sd is None where a single one is left.
        """
        records = study.records_of(arm)
        before, found = self._known.get(arm, (None, {}))
        # The records themselves, not their ids: an id may be given again.
        key = (study.design.metric, training, charts)
        if before is None or not _same(before[0], records) or before[1:] != key:
            columns = {"validation": ("validation", study.design.metric), "loss": ("curve", LOSS)}
            found = {
                name: band(
                    [
                        *study.series(arm, table, column).values(),
                        *(run for progress in training for run in _in_training(progress, column)),
                    ]
                )
                for name, (table, column) in (columns | {name: ("validation", name) for name in charts}).items()
            }
            self._known[arm] = ((records, *key), found)
        return found


def _same(one: Sequence[Any], two: Sequence[Any]) -> bool:
    return len(one) == len(two) and all(a is b for a, b in zip(one, two, strict=True))


def band(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """Mean and standard deviation of runs on the points of the longest one, thinned to POINTS; none without a run."""
    runs = [(tokens_T, values_T) for tokens_T, values_T in runs if len(tokens_T)]
    if not runs:
        return {"tokens": [], "mean": [], "sd": [], "n": []}
    grid_T = max((tokens_T for tokens_T, _ in runs), key=lambda tokens_T: (tokens_T[-1], len(tokens_T)))
    grid_T = grid_T[thinned(len(grid_T), POINTS)]
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
