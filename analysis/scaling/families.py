"""Several families of models (dense, sparse ones) and how much of a scaling law they share.

Forms, from the fewest coefficients on: one law for all of them; one law whose parameter term knows sparsity, granularity or
both (dense models have 1 of each); a law each with one irreducible loss E; and a law each, E included. All are fitted without
the largest model of every family and judged on those models' runs; the simplest one whose error is within 5 % of the least
is kept. A form that those runs don't determine has no such error and isn't kept.
"""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from analysis.scaling.fitting import NO_ERROR, UNDETERMINED, best_of, first_guesses, fit_law, refitted, resampled
from analysis.scaling.law import MODIFIERS, ScalingLaw, checked, law_of, terms_of
from core.errors import UserError

ONE_E, OWN = "a law each, one E", "a law each"
CLOSE = 1.05  # errors this near to the least can't be told from it by a few runs
E_STARTS = (0.3, 0.6, 0.9)  # shares of the lowest loss
OWN_PLACES = (0, 1, 3, 4)  # of a, b, alpha, beta in a law's coefficients


@dataclass(frozen=True)
class Runs:
    """R runs. family: (R,) names; the other columns (R,): active parameters, training tokens, final loss in nats, experts
    over chosen experts, granularity; point: labels, the same for the seeds of one point."""

    family: np.ndarray
    parameters: np.ndarray
    tokens: np.ndarray
    loss: np.ndarray
    sparsity: np.ndarray
    granularity: np.ndarray
    point: np.ndarray

    @property
    def families(self) -> list[str]:
        return list(dict.fromkeys(self.family.tolist()))

    @property
    def largest(self) -> np.ndarray:
        """Mask of the runs of their family's largest model. (R,) bool."""
        top = {name: self.parameters[self.family == name].max() for name in self.families}
        return np.array([n == top[name] for n, name in zip(self.parameters, self.family, strict=True)], dtype=bool)

    @property
    def modifiers(self) -> tuple[str, ...]:
        """The modifiers that differ between runs."""
        return tuple(name for name in MODIFIERS if len(np.unique(getattr(self, name))) > 1)

    def where(self, chosen_R: np.ndarray) -> "Runs":
        return Runs(**{name: column[chosen_R] for name, column in vars(self).items()})

    def columns(self, *names: str) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("parameters", "tokens", "loss", *names)}

    def of(self, family: str) -> "Runs":
        return self.where(self.family == family)


@dataclass(frozen=True)
class Form:
    """A form and how far off it is on every family's largest model: root mean square of log residuals.

    modifiers: of one law for all families; empty else. error: None where it wasn't judged, and where the other runs don't
    determine the form: then equally good fits differ by `spread` in their log predictions of those models.
    """

    name: str
    modifiers: tuple[str, ...]
    coefficients: int
    error: float | None
    spread: float = 0.0

    @property
    def of_each(self) -> bool:
        """True if every family has a law of its own."""
        return self.name in (ONE_E, OWN)


def compare(runs: Runs) -> tuple[Form, ...]:
    """All forms, judged on the largest model of every family; the fewest coefficients first.

    Raises UserError where too little is left without those models. A form that has too few runs by family is left out.
    """
    checked(runs.columns(*runs.modifiers))
    seen, unseen = runs.where(~runs.largest), runs.where(runs.largest)
    found = [_judged(form, seen, unseen) for form in _shared(runs.modifiers)]
    found.sort(key=lambda form: (len(form.modifiers), math.inf if form.error is None else form.error))
    families = len(runs.families)
    if families > 1 and set(seen.families) == set(runs.families):  # of one model nothing would be left
        for form in (Form(ONE_E, (), 4 * families + 1, None), Form(OWN, (), 5 * families, None)):
            with suppress(UserError):
                found.append(_judged(form, seen, unseen))
    return tuple(found)


def _shared(modifiers: Sequence[str]) -> Iterator[Form]:
    for size in range(len(modifiers) + 1):
        for names in itertools.combinations(modifiers, size):
            name = f"one law with {' and '.join(names)}" if names else "one law"
            yield Form(name, names, 5 + size, None)


def _judged(form: Form, seen: Runs, unseen: Runs) -> Form:
    """The form with its error and spread on runs that it isn't fitted to."""
    laws = fit(seen, form, asked=unseen)
    first = next(iter(laws.values()))
    parts = [(laws[name], unseen.of(name)) for name in unseen.families] if form.of_each else [(first, unseen)]
    residuals, spreads = [], []
    for law, own in parts:
        columns = own.columns(*form.modifiers)
        loss = columns.pop("loss")
        residuals.append(np.log(law.predict(**columns) / loss))
        spreads.append(law.spread(**columns))
    error = float(np.sqrt((np.concatenate(residuals) ** 2).mean()))
    return replace(form, error=error if max(spreads) <= UNDETERMINED else None, spread=max(spreads))


def choose(forms: Sequence[Form]) -> Form:
    """The simplest determined form whose held-out error is within 5 % of the least.

    Raises UserError where the runs without the largest models determine none.
    """
    errors = [form.error for form in forms if form.error is not None]
    if not errors:
        raise UserError("without the largest models, these runs determine none of the forms")
    enough = CLOSE * max(min(errors), NO_ERROR)
    return next(form for form in forms if form.error is not None and form.error <= enough)


def fit(runs: Runs, form: Form, *, asked: Runs | None = None, bootstrap: int = 0) -> Mapping[str, ScalingLaw]:
    """The form's law of each family: the same one for all, or one each.

    asked: places at which the laws' spread has to be exact. bootstrap: refits on resampled points. Raises UserError as
    `fit_law` does.
    """
    rng = np.random.default_rng(0)
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
