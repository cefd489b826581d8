"""Factorial designs in blocks: what each factor does on average, and whether one's effect depends on another's level.

The unit is the block (a seed): every contrast is computed within each block and tested over blocks by a paired t test. There
are no F tests: they need differences that vary alike (sphericity), and ask nothing that the contrasts don't.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from analysis.statistics.compare import VERDICT_FLOOR, PairedEffect, holm, paired_effect
from analysis.study import Study
from core.config.loading import text
from core.errors import UserError
from core.records import likelihood_kind

Table = Mapping[str, Sequence[Any]]


@dataclass(frozen=True)
class Contrast:
    """One contrast over blocks: of the factors' `levels` against their `reference` levels.

    effect: mean over blocks with a t interval, in the value's unit. p_holm: adjusted over all contrasts of the family.
    """

    factors: tuple[str, ...]
    levels: tuple[Any, ...]
    reference: tuple[Any, ...]
    effect: PairedEffect
    p_holm: float


@dataclass(frozen=True)
class Factorial:
    """A family of contrasts."""

    contrasts: tuple[Contrast, ...]


def main_effects(table: Table, *, reference: Mapping[str, Any] | None = None, alpha: float = 0.05) -> Factorial:
    """For each factor and level: mean difference from the reference level, averaged over all other factors' levels.

    table: columns by name, as a data frame has them: "value", "seed" (the block), and one for each factor (at least one); a
    row for each block and cell of a complete factorial. reference: the level that each factor is compared with (default: its
    first in the table). alpha: intervals have coverage 1 - alpha.
    Assumes that a contrast's values over blocks are independent and near normal. Raises UserError for a table
    that isn't complete (the cell is named), values that aren't finite, and fewer than 2 blocks.
    """
    return _family(*_cells(table), 1, reference, alpha)


def interactions(table: Table, *, reference: Mapping[str, Any] | None = None, alpha: float = 0.05) -> Factorial:
    """For each pair of factors and levels: the change of one's effect that goes with a change of the other's level.

    The contrast is (y11 - y01) - (y10 - y00), averaged over the levels of all other factors: 0 where effects add up. table,
    reference, alpha, errors: as in `main_effects`, with at least two factors.
    """
    cells, levels = _cells(table)
    if len(levels) < 2:
        raise UserError(f"an interaction needs two factors, and the table has {', '.join(levels)} alone")
    return _family(cells, levels, 2, reference, alpha)


def _family(
    cells: np.ndarray, levels: Mapping[str, list[Any]], order: int, reference: Mapping[str, Any] | None, alpha: float
) -> Factorial:
    """Contrasts of one factor (order 1) or of each two (order 2), Holm-adjusted together."""
    chosen, contrasts = _reference(levels, reference), []
    for names in itertools.combinations(levels, order):
        others = tuple(axis for axis, name in enumerate(levels, start=1) if name not in names)
        mean_SL = cells.mean(axis=others)
        base = [levels[name].index(chosen[name]) for name in names]
        for at in itertools.product(*(range(len(levels[name])) for name in names)):
            if any(place == own for place, own in zip(at, base, strict=True)):
                continue
            # The last factor at its reference and at its level; of two factors, what the first one changes at each.
            sides = [mean_SL[:, *at[:-1], last] for last in (base[-1], at[-1])]
            if order == 2:
                sides = [side - mean_SL[:, base[0], last] for side, last in zip(sides, (base[-1], at[-1]), strict=True)]
            effect = paired_effect(*sides, alpha=alpha)
            reached = tuple(levels[name][place] for name, place in zip(names, at, strict=True))
            contrasts.append((names, reached, tuple(chosen[name] for name in names), effect))
    adjusted = holm([effect.pvalue for *_, effect in contrasts])
    return Factorial(tuple(Contrast(*each, float(p)) for each, p in zip(contrasts, adjusted, strict=True)))


def of_study(study: Study) -> tuple[Factorial | None, Factorial | None, str]:
    """Main effects and interactions of a study in its metric, over the seeds that all arms finished; and a note on them.

    None where the arms aren't all combinations of at least two factors' levels, or where fewer than VERDICT_FLOOR seeds
    are complete (the note says which). References are the control's levels.
    """
    design = study.design
    factors = {factor.key: factor.label for factor in design.factors if len(factor.levels) > 1}
    cells = math.prod(len(factor.levels) for factor in design.factors)
    if len(factors) < 2 or len(design.arms) != cells or len(set(factors.values())) < len(factors):
        return None, None, ""
    if reason := _unlike(study):
        return None, None, reason
    values = {arm.name: study.values(arm.name, design.metric) for arm in design.arms}
    whole = np.isfinite(np.stack(list(values.values()))).all(0)
    if whole.sum() < VERDICT_FLOOR:
        return None, None, f"only {whole.sum()} seeds have a finished run of every arm, and {VERDICT_FLOOR} are needed"
    seeds = [seed for seed, finished in zip(design.seeds, whole, strict=True) if finished]
    table: dict[str, Sequence[Any]] = {"seed": seeds * len(values)}
    table["value"] = np.concatenate([column[whole] for column in values.values()]).tolist()
    for key, label in factors.items():
        table[label] = [text(arm.settings[key]) for arm in design.arms for _ in seeds]
    control = design.by_name[design.control]
    reference = {label: text(control.settings[key]) for key, label in factors.items()}
    note = f"over the {len(seeds)} of {len(whole)} seeds in which every arm finished" if not whole.all() else ""
    try:
        more: dict[str, Any] = {"reference": reference, "alpha": design.alpha}
        return main_effects(table, **more), interactions(table, **more), note
    except UserError as error:  # contrasts without variance
        return None, None, str(error)


def _unlike(study: Study) -> str | None:
    """Reason why arms' values can't be averaged, or None."""
    metric, labels = study.design.metric, study.labels
    for one, two in itertools.combinations(study.arms, 2):
        if any(study.data_differs(one, two, seed) for seed in study.design.seeds):
            return "arms were trained on different data, so their values can't be averaged"
        if (kinds := study.likelihoods(metric, one, two)) is None:
            continue
        mixed = "one is a bound and one an exact likelihood" if kinds[0].kind != kinds[1].kind else None
        if reason := likelihood_kind.incomparable(*kinds) or mixed:
            return f"values of “{labels[one]}” and “{labels[two]}” can't be averaged: {reason}"
    return None


def _cells(table: Table) -> tuple[np.ndarray, dict[str, list[Any]]]:
    """The values as an array with an axis for blocks and one for each factor, and the levels along each."""
    value, block = "value", "seed"
    columns = {name: list(column) for name, column in table.items()}
    for name in (value, block):
        if name not in columns:
            raise UserError(f"the table has no column '{name}'; it has {', '.join(map(str, columns))}")
    levels = {name: list(dict.fromkeys(own)) for name, own in columns.items() if name not in (value, block)}
    for name, own in levels.items():
        if len(own) < 2:
            raise UserError(f"factor '{name}' has a single level, {own[0]!r}; drop the column")
    if not levels:
        raise UserError("the table has no factor: a column beside the value and the block")
    blocks = list(dict.fromkeys(columns[block]))
    if len(blocks) < 2:
        raise UserError(f"a factorial in blocks needs at least 2 of them in column '{block}', not {len(blocks)}")
    axes = {block: blocks, **levels}
    order = {name: {entry: place for place, entry in enumerate(own)} for name, own in axes.items()}
    places = tuple([order[name][entry] for entry in columns[name]] for name in axes)
    values, cells = np.array(columns[value], dtype=float), np.zeros([len(own) for own in axes.values()])
    rows = np.zeros_like(cells)
    np.add.at(rows, places, 1)
    if (rows > 1).any():
        raise UserError("the table has two rows of the same block and cell; average them first")
    if not np.isfinite(values).all():
        raise UserError(f"column '{value}' has values that aren't finite: leave those blocks out, and say so")
    if not rows.all():
        missing = np.argwhere(rows == 0)[0]
        told = ", ".join(f"{name} {own[place]}" for (name, own), place in zip(axes.items(), missing, strict=True))
        raise UserError(f"the factorial isn't complete: no row for {told}")
    cells[places] = values
    return cells, levels


def _reference(levels: Mapping[str, list[Any]], reference: Mapping[str, Any] | None) -> dict[str, Any]:
    given = dict(reference or {})
    for name, level in given.items():
        if level not in levels.get(name, ()):
            raise UserError(f"reference: {level!r} is no level of '{name}'")
    return {name: given.get(name, own[0]) for name, own in levels.items()}
