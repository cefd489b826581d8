"""Ways of decoding, compared on the same models and prompts: how often each is right, and what that takes.

A model's answers to many prompts are alike, and so are many models' answers to one prompt: both models (seeds) and
prompts are clusters. Shapes: S models, N prompts, W ways, the control first.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from analysis.formatting import coverage, percent, pvalue
from analysis.statistics.compare import VERDICT_FLOOR, holm, verdict
from analysis.study import Study
from analysis.table import Sheet
from core.runtime.units import ranked

PERMUTATIONS = 4999


@dataclass(frozen=True)
class Shift:
    """A mean over models and prompts, with an interval for other models and other prompts of the kind."""

    estimate: float
    low: float
    high: float
    se: float
    df: int

    def pvalue(self, null: float = 0.0) -> float:
        """Two-sided, that the mean is `null`."""
        return float(2 * special.stdtr(self.df, -abs(self._t(null))))

    def p_equivalence(self, margin: float) -> float:
        """Of two one-sided tests against a mean as large as the margin (Schuirmann 1987)."""
        return float(special.stdtr(self.df, max(self._t(margin), -self._t(-margin))))

    def _t(self, null: float) -> float:
        distance = self.estimate - null
        return distance / self.se if self.se > 0 else math.copysign(math.inf, distance) if distance else 0.0


def shift(values_SN: ArrayLike, *, alpha: float = 0.05) -> Shift:
    """The mean of values that two crossed clusters share, with an interval of coverage 1 - alpha.

    values_SN: (S, N), a row for each model, a column for each prompt. The variance of the mean is that of clusters of models
    plus that of clusters of prompts, less that of single answers, which both have counted (Cameron, Gelbach and Miller 2011),
    and never below either; a t distribution of the smaller number of clusters less one. One model says nothing of others: its
    interval is of other prompts alone.
    """
    values = np.asarray(values_SN, dtype=float)
    models, prompts = values.shape
    residual = values - values.mean()
    by_model = _of_mean(residual.mean(1)) if models > 1 else 0.0
    by_prompt = _of_mean(residual.mean(0)) if prompts > 1 else 0.0
    single = float((residual**2).sum()) / (values.size * max(1, values.size - 1))
    both = by_model + by_prompt - single if models > 1 and prompts > 1 else 0.0
    se, df = math.sqrt(max(by_model, by_prompt, both)), (min(models, prompts) if models > 1 else prompts) - 1
    reach = float(-special.stdtrit(df, alpha / 2)) * se
    estimate = float(values.mean())
    return Shift(estimate, estimate - reach, estimate + reach, se, df)


def _of_mean(values: np.ndarray) -> float:
    return float(values.var(ddof=1)) / len(values)


def mcnemar(difference_SN: ArrayLike) -> float:
    """The p-value that two ways are as often right on these models, prompts being clusters (Durkalski et al. 2003).

    difference_SN: (S, N) right or not of one less the other. With one model it is McNemar's test (1947) as the sum over
    discordant pairs.
    """
    by_prompt = np.asarray(difference_SN, dtype=float).sum(0)
    spread = float((by_prompt**2).sum())
    return float(special.chdtrc(1, by_prompt.sum() ** 2 / spread)) if spread else 1.0


def cochran(right_SNW: ArrayLike, *, permutations: int = PERMUTATIONS, seed: int = 0) -> float:
    """The p-value that all ways are as often right on these models (Cochran's Q, 1950), prompts being clusters.

    right_SNW: (S, N, W). Q is compared with its values when each prompt's ways change places, in all models alike: exact
    whatever the models' answers to one prompt have in common.
    """
    by_prompt = np.asarray(right_SNW, dtype=float).sum(0)  # (N, W)
    rng = np.random.default_rng(seed)
    # Q grows with the spread of the ways' totals alone: what else is in it is the same in every permutation.
    found, above = _spread(by_prompt), 1
    for _ in range(permutations):
        above += _spread(rng.permuted(by_prompt, axis=1)) >= found - 1e-9
    return above / (permutations + 1)


def _spread(by_prompt_NW: np.ndarray) -> float:
    return float(by_prompt_NW.sum(0).var())


@dataclass(frozen=True)
class Way:
    """One way of decoding an arm's models.

    right: exact match; effect: less that of the arm's control way, and for that way less the control arm's; p_holm of it,
    over all ways of all arms; p_mcnemar: on these very models, Holm-adjusted as well. calls: network calls of a response;
    tokens_per_call: TPF; ms: milliseconds of a response, as they were decoded, a median over models; n: models.
    """

    arm: str
    name: str
    label: str
    right: Shift | None
    effect: Shift | None
    p_holm: float | None
    p_mcnemar: float | None
    p_equivalence: float | None
    calls: float | None
    tokens_per_call: float | None
    ms: float | None
    n: int
    verdict: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Decoding:
    """All ways of all arms. cochran: by arm, the p-value that all ways are as often right."""

    task: str
    examples: int
    length: int
    margin: float | None
    ways: tuple[Way, ...]
    cochran: Mapping[str, float]
    missing: int
    alpha: float

    @property
    def headline(self) -> str:
        """What it found, in a sentence or two."""
        return _headline(self)


def decoding(study: Study) -> Decoding:
    """Compare every way with the control's within each model and prompt, as far as models were decoded."""
    design = study.design["decoders"]
    ways: list[Way] = []
    omnibus: dict[str, float] = {}
    for arm in study.arms:
        causal = arm in design.get("causal", ())
        own = [design["ways"][0] | {"label": "token after token"}] if causal else design["ways"]
        ways += [_way(study, arm, way, design) for way in own]
        right = _answers(study, arm, [way["name"] for way in own])
        if right is not None and right.shape[-1] > 1:
            omnibus[arm] = cochran(right)
    finished = sum(record.status == "complete" for record in study.cells.values())
    there = sum(one.reason is None for each in study.decoded.values() for one in each.values())
    wanted = sum(1 if arm in design.get("causal", ()) else len(design["ways"]) for arm in study.arms)
    return Decoding(
        design["task"], design["examples"], design["length"], design["margin"], tuple(_judged(study, design, ways)), omnibus,
        wanted * (finished + study.missing) // len(study.arms) - there, study.design["alpha"],
    )  # fmt: skip


def _way(study: Study, arm: str, way: Mapping[str, Any], design: Mapping[str, Any]) -> Way:
    control, alpha = design["control"], study.design["alpha"]
    found = [one for seed in study.design["seeds"] if (one := study.decoded.get((arm, seed), {}).get(way["name"]))]
    answered = [one for one in found if one.reason is None]
    notes = [f"{len(found) - len(answered)} models failed: {one.reason}" for one in found if one.reason is not None][:1]
    row: dict[str, Any] = {"arm": arm, "name": way["name"], "label": way["label"], "n": len(answered), "p_holm": None}
    row |= {"p_mcnemar": None, "p_equivalence": None, "effect": None, "verdict": "no verdict"}
    if not answered:
        nothing = {"right": None, "calls": None, "tokens_per_call": None, "ms": None}
        return Way(**row | nothing, notes=(*notes, "not decoded yet: ablate decode"))
    own = _answers(study, arm, [way["name"]])
    assert own is not None
    calls = float(np.mean([one.calls for one in answered]))
    ms = float(np.median([1e3 * one.seconds / (one.examples * len(one.right)) for one in answered]))
    row |= {
        "right": shift(own[..., 0], alpha=alpha),
        "calls": calls,
        "tokens_per_call": design["length"] / calls,
        "ms": ms,
    }
    if way["name"] == control and arm == study.arms[0]:
        return Way(**row | {"verdict": "control"}, notes=tuple(notes))
    # An arm's own ways are compared with its control way, and that with the control arm's.
    base = arm if way["name"] != control else study.arms[0]
    both = _answers(study, arm, [way["name"]], base, control)
    if both is None or len(both) < VERDICT_FLOOR:
        models = 0 if both is None else len(both)
        return Way(**row, notes=(*notes, f"{models} models are too few for a verdict ({VERDICT_FLOOR} needed)"))
    difference = both[..., 0] - both[..., 1]
    row |= {"effect": shift(difference, alpha=alpha), "p_mcnemar": mcnemar(difference)}
    return Way(**row, notes=tuple(notes))


def _answers(
    study: Study, arm: str, names: list[str], base: str | None = None, against: str | None = None
) -> np.ndarray | None:
    """Right or not, a mean over decode seeds, of the seeds whose models were decoded in all of these ways; and last, where a
    base arm is named, of its model of that seed in the way `against`. Returns (S, N, W)."""
    wanted = [(arm, name) for name in names] + ([(base, against)] if base is not None and against is not None else [])
    rows = []
    for seed in study.design["seeds"]:
        have = [study.decoded.get((each, seed), {}).get(name) for each, name in wanted]
        columns = [
            np.mean([[mark == "1" for mark in line] for line in one.right], axis=0)
            for one in have
            if one is not None and one.reason is None
        ]
        if len(columns) == len(wanted):
            rows.append(np.stack(columns, axis=-1))
    return np.stack(rows) if rows else None


def _judged(study: Study, design: Mapping[str, Any], ways: list[Way]) -> list[Way]:
    tested = [place for place, way in enumerate(ways) if way.effect is not None]
    effects = [way.effect for way in ways if way.effect is not None]
    adjusted = holm([effect.pvalue() for effect in effects])
    these = holm([ways[place].p_mcnemar or 0.0 for place in tested])
    same = (
        holm([effect.p_equivalence(design["margin"]) for effect in effects])
        if design["margin"]
        else [None] * len(tested)
    )
    out, alpha = list(ways), study.design["alpha"]
    for place, effect, p, p_these, p_same in zip(tested, effects, adjusted, these, same, strict=True):
        equal = None if p_same is None else float(p_same)
        words = verdict(effect.estimate, float(p), equal, goal="max", alpha=alpha)
        out[place] = replace(ways[place], p_holm=float(p), p_mcnemar=float(p_these), p_equivalence=equal, verdict=words)
    return out


def _headline(found: Decoding) -> str:
    judged = [way for way in found.ways if way.p_holm is not None]
    if not judged:
        return f"No way of decoding is judged yet ({found.missing} to go)."
    groups: dict[str, list[Way]] = {}
    for way in judged:
        groups.setdefault(way.verdict, []).append(way)
    parts = []
    for words, ways in groups.items():
        who = f"all {len(judged)}" if len(ways) == len(judged) else f"{len(ways)} of {len(judged)}"
        effects = [way.effect.estimate for way in ways if way.effect]
        told = [percent(effect, margin=found.margin) for effect in dict.fromkeys((min(effects), max(effects)))]
        size = f" ({' to '.join(told)})" if words in ("better", "worse") else ""
        parts.append(f"{who} {words}{size}".replace("-", "−"))
    to_go = f" ({found.missing} to go)" if found.missing > 0 else ""
    return f"Decoding of {found.task}, exact match beside the control's: {'; '.join(parts)}{to_go}.{_cheapest(found)}"


def _cheapest(found: Decoding) -> str:
    """The way of fewest calls that is shown to lose nothing that matters; nothing where none is. What isn't detected isn't
    shown: few models detect little. Of the control's arm alone: other arms' ways are compared with their own first one."""
    control = next((way for way in found.ways if way.verdict == "control"), None)
    if control is None:  # none of its models was decoded, and other arms' were
        return ""
    shown = [
        way
        for way in found.ways
        if way.arm == control.arm
        and way.verdict.startswith(("equivalent", "better"))
        and way.calls is not None
        and (control.calls is None or way.calls < control.calls)
    ]
    if not shown:
        return ""
    best = shown[ranked([way.calls or math.inf for way in shown])[0]]
    words = (
        f"{best.verdict} of {100 * (found.margin or 0):g}%" if best.verdict.startswith("equivalent") else best.verdict
    )
    return f" Fewest calls of those equivalent or better: “{best.label}” ({words}), {best.tokens_per_call:.2g} tokens a call."


def sheet(found: Decoding) -> Sheet:
    """The table of a page, a terminal and a file."""
    shown, exact = [], []
    for way in found.ways:
        rights = (
            [percent(each, sign=False) for each in (way.right.estimate, way.right.low, way.right.high)]
            if way.right
            else []
        )
        right = f"{rights[0]} [{rights[1]}, {rights[2]}]" if rights else ""
        bounds = f"[{percent(way.effect.low)}, {percent(way.effect.high)}]" if way.effect else ""
        effect = f"{percent(way.effect.estimate, margin=found.margin)} {bounds}" if way.effect else ""
        costs = (_told(way.calls, ".1f"), _told(way.tokens_per_call, ".2f"), _told(way.ms, ".1f"))
        words = "; ".join((way.verdict, *way.notes))
        ps = (pvalue(way.p_holm, found.alpha), pvalue(way.p_mcnemar, found.alpha))
        shown.append((_label(found, way), right, effect, *ps, *costs, str(way.n), words))
        numbers = {"arm": way.arm, "way": way.name, "n": way.n, "verdict": way.verdict}
        for name in ("right", "effect"):
            part: Shift | None = getattr(way, name)
            numbers |= {f"{name}_{key}": getattr(part, key) if part else None for key in ("estimate", "low", "high")}
        numbers |= {
            key: getattr(way, key) for key in ("p_holm", "p_mcnemar", "p_equivalence", "calls", "tokens_per_call", "ms")
        }
        exact.append(numbers)
    head = ("decoding", "exact match", "effect", "Holm p", "McNemar p", "NFE", "TPF", "ms", "n", "verdict")
    return Sheet("decoding", head, tuple(shown), tuple(exact), _title(found), _caption(found))


def _label(found: Decoding, way: Way) -> str:
    return way.label if len({each.arm for each in found.ways}) == 1 else f"{way.arm}: {way.label}"


def _told(value: float | None, form: str) -> str:
    return "" if value is None else f"{value:{form}}"


def _title(found: Decoding) -> str:
    return f"Decoding of {found.task}: {found.examples} held-out prompts, {found.length} tokens each"


def _caption(found: Decoding) -> str:
    omnibus = ", ".join(
        f"{'' if len(found.cochran) == 1 else f'{arm} '}p = {pvalue(p, found.alpha)}"
        for arm, p in found.cochran.items()
    )
    said = [f"Cochran's Q over all ways, prompts as clusters: {omnibus}."] if omnibus else []
    if len({way.arm for way in found.ways}) > 1:
        said.append("An arm's ways are compared with its first, and that with the control arm's, within seeds.")
    said += [
        f"Brackets: {coverage(found.alpha)}s.",
        "Effects are of the same models and prompts, each a cluster, so that intervals and Holm p are of other models and "
        "other prompts of the kind; McNemar p (prompts as clusters, Holm-adjusted) is of these very models. NFE: network "
        "calls of a response; TPF: tokens that a call fixes; ms: of a response, as decoded beside other work: ablate bench "
        "sampling times side by side.",
    ]
    if found.margin:
        said.append(f"Differences below {100 * found.margin:g}% are declared not to matter.")
    return " ".join(said)
