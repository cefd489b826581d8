"""Runs and curves of a study as tables of numbers: for notebooks, and as runs.csv and curves.csv."""

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from analysis.figures.static import drawn
from analysis.study import Study
from analysis.verdicts.answer import Judgement
from core.errors import UserError
from core.registry import nearest

Library = Literal["pandas", "polars"]


def load_study(folder: str | Path) -> Study:
    """The study in a folder of runs, such as "runs/balance.quick". Raises UserError where nothing was recorded."""
    path = Path(folder)
    study = Study.load(path) if path.is_dir() else None
    if study is None:
        raise UserError(f"{path} holds no records of a study: name the folder of one, such as runs/balance.quick")
    return study


def runs(study: Study, library: Library = "pandas") -> Any:
    """A data frame with a row for each run of the design, trained or not: `run_rows` has the columns."""
    return _frame(run_rows(study), library)


def curves(study: Study, library: Library = "pandas") -> Any:
    """A data frame with a row for each logged number of each run: `curve_rows` has the columns."""
    return _frame(list(curve_rows(study)), library)


def _frame(rows: list[dict[str, Any]], library: Library) -> Any:
    try:
        return importlib.import_module(library).DataFrame(rows)
    except ImportError:
        raise UserError(f"a data frame takes the package {library}: pip install {library}") from None


def run_rows(study: Study) -> list[dict[str, Any]]:
    """Rows of runs, all with the same columns: arm, label, each factor, seed, status ("missing" where there is no record),
    reason, every metric, parameters, active_parameters, flops, tokens, wall_time_s, tokens_per_second, run_hash, host,
    started_at, finished_at."""
    metrics = list(dict.fromkeys(name for record in study.cells.values() for name in record.metrics))
    rows = []
    for arm in study.design.arms:
        for seed in study.seeds_of(arm.name):
            record = study.cells.get((arm.name, seed))
            row: dict[str, Any] = {"arm": arm.name, "label": arm.label}
            row |= {factor.key: arm.settings.get(factor.key) for factor in study.design.factors if factor.key != "arm"}
            row |= {"seed": seed, "status": record.status if record else "missing", "reason": record and record.reason}
            row |= {name: record.metrics.get(name) if record else None for name in metrics}
            row |= {"parameters": arm.parameters.total, "active_parameters": arm.parameters.active}
            for name in ("flops", "tokens", "wall_time_s", "tokens_per_second", "run_hash"):
                row[name] = getattr(record, name) if record else None
            row["host"] = record.provenance.get("host") if record else None
            row |= {name: getattr(record, name) if record else None for name in ("started_at", "finished_at")}
            rows.append(row)
    return rows


def curve_rows(study: Study) -> Iterator[dict[str, Any]]:
    """Rows of curves: arm, label, seed, split ("train" or "validation"), step, tokens, metric and value."""
    for arm in study.arms:
        for record in study.records_of(arm):
            for split, columns in (("train", record.curve), ("validation", record.validation)):
                steps, tokens = columns.get("step") or [], columns.get("tokens") or []
                for metric, values in columns.items():
                    if metric in ("step", "tokens") or not len(values) == len(steps) == len(tokens):
                        continue
                    head = {"arm": arm, "label": study.labels[arm], "seed": record.seed, "split": split}
                    for step, count, value in zip(steps, tokens, values, strict=True):
                        yield {**head, "step": step, "tokens": count, "metric": metric, "value": value}


def plot(judgement: Judgement, name: str) -> list[Any]:
    """The axes (matplotlib) of a figure of an answer, by the name of its file: "effects", "curves".

    Raises UserError for a name that the answer has no figure of.
    """
    pictures = {each: picture for figure in judgement.figures for each, picture in drawn(figure).items()}
    if name not in pictures:
        raise UserError(f"this answer has no figure '{name}': {nearest(name, pictures)}")
    return pictures[name].on_paper().axes
