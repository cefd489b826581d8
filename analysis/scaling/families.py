"""Several families of models (dense, sparse ones) and how much of a scaling law they share.

Forms, from the fewest coefficients on: one law for all of them; one law whose parameter term knows sparsity, granularity or
both (dense models have 1 of each); a law each with one irreducible loss E, which is the data's and the objective's rather
than the model's; and a law each, E included. Which of them is reported isn't assumed: all are fitted without the largest
model of every family and judged on those models' runs, and the simplest one whose error is within 5 % of the least is kept.
A form that those runs don't determine has no such error and isn't kept.
So whether dense and sparse models share E is decided by what they say about a scale that they haven't seen.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from analysis.scaling.fitting import (
    NO_ERROR,
    best_of,
    compare_forms,
    first_guesses,
    fit_law,
    judged,
    refitted,
    resampled,
)
from analysis.scaling.forms import Form, Runs
from analysis.scaling.law import ScalingLaw, checked, law_of, terms_of
from core.errors import UserError

ONE_E, OWN = "a law each, one E", "a law each"
CLOSE = 1.05  # errors this near to the least can't be told from it by a few runs
E_STARTS = (0.3, 0.6, 0.9)  # shares of the lowest loss
OWN_PLACES = (0, 1, 3, 4)  # of a, b, alpha, beta in a law's coefficients


def compare(runs: Runs) -> tuple[Form, ...]:
    """All forms, judged on the largest model of every family; the fewest coefficients first.

    Raises UserError where too little is left without those models. A form that has too few runs by family is left out.
    """
    held, families, found = runs.largest, len(runs.families), []
    nested = compare_forms(**runs.columns(*runs.modifiers), held_out=held)
    for form in sorted(nested, key=lambda form: len(form.modifiers)):
        name = f"one law with {' and '.join(form.modifiers)}" if form.modifiers else "one law"
        found.append(Form(name, form.modifiers, 5 + len(form.modifiers), form.error, form.spread))
    if families > 1 and set(runs.where(~held).families) == set(runs.families):  # of one model nothing would be left
        for name, coefficients in ((ONE_E, 4 * families + 1), (OWN, 5 * families)):
            try:
                laws = fit(runs.where(~held), Form(name, (), coefficients, None), asked=runs.where(held))
            except UserError:
                continue
            parts = [(*judged(runs.where(held).of(f).columns(), law), (held & (runs.family == f)).sum())
                     for f, law in laws.items()]  # fmt: skip
            known = [(error, n) for error, _, n in parts if error is not None]
            whole = float(np.sqrt(sum(error**2 * n for error, n in known) / held.sum()))
            error = whole if len(known) == len(parts) else None
            found.append(Form(name, (), coefficients, error, max(spread for _, spread, _ in parts)))
    return tuple(found)


def choose(forms: Sequence[Form]) -> Form:
    """The simplest determined form whose held-out error is within 5 % of the least.

    Raises UserError where the runs without the largest models determine none.
    """
    errors = [form.error for form in forms if form.error is not None]
    if not errors:
        raise UserError("without the largest models, these runs determine none of the forms")
    enough = CLOSE * max(min(errors), NO_ERROR)
    return next(form for form in forms if form.error is not None and form.error <= enough)


def fit(
    runs: Runs, form: Form, *, asked: Runs | None = None, bootstrap: int = 0, seed: int = 0
) -> Mapping[str, ScalingLaw]:
    """The form's law of each family: the same one for all, or one each.

    asked: places at which the laws' spread has to be exact. bootstrap: refits on resampled points. Raises UserError as
    `fit_law` does.
    """
    rng = np.random.default_rng(seed)
    more: dict[str, Any] = {"bootstrap": bootstrap, "rng": rng}
    if form.name == OWN:
        laws = {}
        for name in runs.families:
            own, there = runs.of(name), asked.of(name).columns() if asked else None
            laws[name] = fit_law(**own.columns(), together=own.point, asked=there, **more)
        return laws
    if form.name == ONE_E:
        return _fit_one_e(runs, asked, bootstrap, rng)
    there = asked.columns(*form.modifiers) if asked else None
    law = fit_law(**runs.columns(*form.modifiers), together=runs.point, asked=there, **more)
    return dict.fromkeys(runs.families, law)


def _fit_one_e(runs: Runs, asked: Runs | None, bootstrap: int, rng: np.random.Generator) -> Mapping[str, ScalingLaw]:
    """A law each but for E. Coefficients: log E, then (log A, log B, alpha, beta) of each family."""
    names = runs.families
    columns = {name: checked(runs.of(name).columns()) for name in names}
    alone = [fit_law(**runs.of(name).columns()) for name in names]
    own = np.concatenate([[np.log(law.A), np.log(law.B), law.alpha, law.beta] for law in alone])
    first = [np.log(law.E) for law in alone] + [np.log(share * runs.loss.min()) for share in E_STARTS]
    terms, loss = _joint(runs, names), np.log(runs.loss)
    starts = np.concatenate([[[e, *own] for e in first], _guesses(terms, loss, runs)])
    theta, alike = best_of(terms, loss, starts, _joint(asked, names) if asked else None)
    drawn = [resampled(len(runs.loss), runs.point, rng) for _ in range(bootstrap)]
    samples = refitted(terms, loss, theta, [places for places in drawn if set(runs.family[places]) == set(names)])
    laws = {}
    for place, name in enumerate(names):
        more = ([_of_family(one, place) for one in several] for several in (samples, alike))
        laws[name] = law_of(_of_family(theta, place), columns[name], [], *more)
    return laws


def _guesses(terms: np.ndarray, loss: np.ndarray, runs: Runs) -> np.ndarray:
    """Joint starts of each family's own, the best with the best. Returns (STARTS, 1 + 4 families)."""
    parts = []
    for place, name in enumerate(runs.families):
        own = runs.family == name
        columns = [1 + 4 * place, 2 + 4 * place, 0, 3 + 4 * place, 4 + 4 * place]
        parts.append(first_guesses(terms[:, own][:, :, columns], loss[own]))
    return np.column_stack([parts[0][:, 2], *(part[:, OWN_PLACES] for part in parts)])


def _of_family(theta: np.ndarray, place: int) -> np.ndarray:
    a, b, alpha, beta = theta[1 + 4 * place : 5 + 4 * place]
    return np.array([a, b, theta[0], alpha, beta])


def _joint(runs: Runs, names: Sequence[str]) -> np.ndarray:
    """Matrix from joint coefficients to log terms: (3, R, 1 + 4 families)."""
    own = terms_of({name: np.log(column) for name, column in runs.columns().items()}, ())
    joint = np.zeros((*own.shape[:2], 1 + 4 * len(runs.families)))
    joint[:, :, 0] = own[:, :, 2]
    for place, name in enumerate(runs.families):
        chosen = runs.family == name
        joint[:, chosen, 1 + 4 * place : 5 + 4 * place] = own[:, chosen][:, :, OWN_PLACES]
    return joint
