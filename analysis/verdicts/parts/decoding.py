"""Decoding configurations compared on the same models and prompts: how often each is right, and what that takes.

Shapes: S models, N prompts, W configurations, the control first.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from analysis.figure import Dot, Figure, Lines, Series, View
from analysis.formatting import coverage, percent, pvalue
from analysis.statistics.clustered import ClusteredMean, clustered_mean, cochran, mcnemar
from analysis.statistics.compare import VERDICT_FLOOR, holm, verdict
from analysis.study import Study
from analysis.table import Cell, Column, Medium, Prose, Table
from analysis.verdicts.answer import Context, Part, part
from analysis.verdicts.comparison_tables import tone
from core.records.designs import DecodersDesign, DecodingConfig
from core.runtime.units import ranked

ENDS = ("estimate", "low", "high")
COSTS = ("p_holm", "p_mcnemar", "p_equivalence", "calls", "tokens_per_call", "ms")


@dataclass(frozen=True)
class DecodingResult:
    """One way of decoding an arm's models.

    right: exact match; effect: less that of the arm's control way, and for that way less the control arm's; p_holm of it,
    over all ways of all arms; p_mcnemar: on these very models, Holm-adjusted as well. calls: of the network, for a response;
    ms: of a response, a median over models; n: models.
    """

    arm: str
    name: str
    label: str
    right: ClusteredMean | None = None
    effect: ClusteredMean | None = None
    p_holm: float | None = None
    p_mcnemar: float | None = None
    p_equivalence: float | None = None
    calls: float | None = None
    tokens_per_call: float | None = None
    ms: float | None = None
    n: int = 0
    verdict: str = "no verdict"
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Decoding:
    """All ways of all arms. cochran: by arm, the p-value that all ways are as often right."""

    task: str
    examples: int
    length: int
    margin: float | None
    ways: tuple[DecodingResult, ...]
    cochran: Mapping[str, float]
    missing: int
    alpha: float

    @property
    def headline(self) -> str:
        """Result in a sentence or two."""
        judged = [way for way in self.ways if way.p_holm is not None]
        if not judged:
            return f"No way of decoding is judged yet ({self.missing} to go)."
        groups: dict[str, list[DecodingResult]] = {}
        for way in judged:
            groups.setdefault(way.verdict, []).append(way)
        parts = []
        for words, ways in groups.items():
            who = f"all {len(judged)}" if len(ways) == len(judged) else f"{len(ways)} of {len(judged)}"
            effects = [way.effect.estimate for way in ways if way.effect]
            told = [percent(effect, margin=self.margin) for effect in dict.fromkeys((min(effects), max(effects)))]
            size = f" ({' to '.join(told)})" if words in ("better", "worse") else ""
            parts.append(f"{who} {words}{size}".replace("-", "−"))
        to_go = f" ({self.missing} to go)" if self.missing > 0 else ""
        return (
            f"Decoding of {self.task}, exact match beside the control's: {'; '.join(parts)}{to_go}.{self._cheapest()}"
        )

    def _cheapest(self) -> str:
        """The way of fewest calls that is shown to lose nothing that matters; empty where none is. What isn't detected isn't
        shown: few models detect little. Other arms' ways are left out: they are compared with their own first one."""
        control = next((way for way in self.ways if way.verdict == "control"), None)
        if control is None:  # none of its models was decoded, and other arms' were
            return ""
        shown = [
            way
            for way in self.ways
            if way.arm == control.arm
            and way.verdict.startswith(("equivalent", "better"))
            and way.calls is not None
            and (control.calls is None or way.calls < control.calls)
        ]
        if not shown:
            return ""
        best = shown[ranked([way.calls or math.inf for way in shown])[0]]
        words, cost = best.verdict, f"{best.tokens_per_call:.2g} tokens a call"
        if words.startswith("equivalent"):
            words += f" of {100 * (self.margin or 0):g}%"
        return f" Fewest calls of those equivalent or better: “{best.label}” ({words}), {cost}."


def decoding(study: Study) -> Decoding:
    """Compare every way with the control's within each model and prompt, as far as models were decoded."""
    design = study.design.decoders
    assert design is not None
    ways: list[DecodingResult] = []
    omnibus: dict[str, float] = {}
    for arm in study.arms:
        causal = arm in design.causal
        own = (replace(design.ways[0], label="token after token"),) if causal else design.ways
        ways += [_way(study, arm, way, design) for way in own]
        right = _answers(study, arm, [way.name for way in own])
        if right is not None and right.shape[-1] > 1:
            omnibus[arm] = cochran(right)
    finished = sum(record.status == "complete" for record in study.cells.values())
    there = sum(one.reason is None for each in study.decoded.values() for one in each.values())
    wanted = sum(1 if arm in design.causal else len(design.ways) for arm in study.arms)
    return Decoding(
        design.task, design.examples, design.length, design.margin, tuple(_judged(study, design, ways)), omnibus,
        wanted * (finished + study.missing) // len(study.arms) - there, study.design.alpha,
    )  # fmt: skip


def _way(study: Study, arm: str, way: DecodingConfig, design: DecodersDesign) -> DecodingResult:
    control, alpha = design.control, study.design.alpha
    found = [one for seed in study.design.seeds if (one := study.decoded.get((arm, seed), {}).get(way.name))]
    answered = [one for one in found if one.reason is None]
    notes = [f"{len(found) - len(answered)} models failed: {one.reason}" for one in found if one.reason is not None][:1]
    result = DecodingResult(arm, way.name, way.label, n=len(answered), notes=tuple(notes))
    own = _answers(study, arm, [way.name])
    if own is None:
        return replace(result, notes=(*notes, "not decoded yet: ablate decode"))
    calls = float(np.mean([one.calls for one in answered]))
    ms = float(np.median([1e3 * one.seconds / (one.examples * len(one.right)) for one in answered]))
    right = clustered_mean(own[..., 0], alpha=alpha)
    result = replace(result, right=right, calls=calls, tokens_per_call=design.length / calls, ms=ms)
    if way.name == control and arm == study.arms[0]:
        return replace(result, verdict="control")
    # An arm's own ways are compared with its control way, and that with the control arm's.
    base = arm if way.name != control else study.arms[0]
    both = _answers(study, arm, [way.name], base, control)
    if both is None or len(both) < VERDICT_FLOOR:
        models = 0 if both is None else len(both)
        return replace(result, notes=(*notes, f"{models} models are too few for a verdict ({VERDICT_FLOOR} needed)"))
    difference = both[..., 0] - both[..., 1]
    return replace(result, effect=clustered_mean(difference, alpha=alpha), p_mcnemar=mcnemar(difference))


def _answers(
    study: Study, arm: str, names: list[str], base: str | None = None, against: str | None = None
) -> np.ndarray | None:
    """Right or not, a mean over decode seeds, of the seeds whose models were decoded in all of these ways; and last, where a
    base arm is named, of its model of that seed in the way `against`. Returns (S, N, W)."""
    wanted = [(arm, name) for name in names] + ([(base, against)] if base is not None and against is not None else [])
    rows = []
    for seed in study.design.seeds:
        have = [study.decoded.get((each, seed), {}).get(name) for each, name in wanted]
        columns = [
            np.mean([[mark == "1" for mark in line] for line in one.right], axis=0)
            for one in have
            if one is not None and one.reason is None
        ]
        if len(columns) == len(wanted):
            rows.append(np.stack(columns, axis=-1))
    return np.stack(rows) if rows else None


def _judged(study: Study, design: DecodersDesign, ways: list[DecodingResult]) -> list[DecodingResult]:
    tested = [place for place, way in enumerate(ways) if way.effect is not None]
    effects = [way.effect for way in ways if way.effect is not None]
    adjusted = holm([effect.pvalue() for effect in effects])
    these = holm([ways[place].p_mcnemar or 0.0 for place in tested])
    same = holm([effect.p_equivalence(design.margin) for effect in effects]) if design.margin else [None] * len(tested)
    out, alpha = list(ways), study.design.alpha
    for place, effect, p, p_these, p_same in zip(tested, effects, adjusted, these, same, strict=True):
        equal = None if p_same is None else float(p_same)
        words = verdict(effect.estimate, float(p), equal, goal="max", alpha=alpha)
        out[place] = replace(ways[place], p_holm=float(p), p_mcnemar=float(p_these), p_equivalence=equal, verdict=words)
    return out


@part("decoding", order=10)
def decoding_part(study: Study, context: Context) -> Part | None:
    """The comparison of a design that has decoding configurations; None for another."""
    if study.design.decoders is None:
        return None
    found = decoding(study)
    sources = (
        "prompts and models as crossed clusters (Cameron, Gelbach and Miller 2011)",
        "McNemar's test of clustered pairs (Durkalski et al. 2003)", "Cochran's Q (1950)",
    )  # fmt: skip
    figures = (frontier(found),) if any(way.right for way in found.ways) else ()
    return Part({"decoding": found}, (table(found),), figures, found.headline, sources)


def frontier(found: Decoding) -> Figure:
    """Exact match with its interval against network calls of a response, a view for each arm."""
    ways = [way for way in found.ways if way.right and way.calls]
    names = list(dict.fromkeys(group(way.label) for way in found.ways))
    arms = list(dict.fromkeys(way.arm for way in ways))
    views = []
    for arm in arms:
        dots: dict[str, list[Dot]] = {}
        for way in ways:
            if way.arm == arm and way.right is not None:
                right, low, high = (100 * each for each in (way.right.estimate, way.right.low, way.right.high))
                dots.setdefault(group(way.label), []).append(Dot(way.calls or 0.0, right, way.label, low, high))
        series = tuple(Series(name, names.index(name), dots=tuple(own)) for name, own in dots.items())
        panel = arm if len(arms) > 1 else "exact match"
        front = _front([dot for own in dots.values() for dot in own])
        x = "network calls of a response (NFE)"
        views.append(View(arm, x, "exact match, %", series, "frontier", panel, log_x=2, front=front))
    alt = f"Exact match on {found.task} against network calls, by way of decoding"
    caption = f"Quality against cost, with {coverage(found.alpha)}s: what lies higher and further left is better."
    data = Lines(tuple(views), {"frontier": alt}, 3.4)
    return Figure("frontier", "samplers", alt, data, caption=caption, after="decoding")


def _front(dots: list[Dot]) -> tuple[list[float], list[float]]:
    """The dots that no other beats with as few calls."""
    best: list[Dot] = []
    for dot in sorted(dots, key=lambda dot: dot.x):
        if not best or dot.y > best[-1].y:
            best.append(dot)
    return [dot.x for dot in best], [dot.y for dot in best]


def group(label: str) -> str:
    """Part of a decoding setting's label drawn in one colour: all but the last, which sets the cost."""
    return label.rpartition(", ")[0] or label


def table(found: Decoding) -> Table:
    """All configurations of all arms: accuracy, effects, costs."""
    wide: tuple[Medium, ...] = ("page", "file")
    caption = _caption(found)
    title = f"Decoding of {found.task}: {found.examples} held-out prompts, {found.length} tokens each"
    notes = {f"note: {way.label}: {note}": None for way in found.ways for note in way.notes}
    columns = (
        Column("decoding"), Column("exact match", wide), Column("right", ("terminal",)), Column("effect"), Column("Holm p"),
        Column("McNemar p", wide), Column("NFE", wide), Column("TPF"), Column("ms", wide), Column("n", wide),
        Column("verdict", wide, prose=True), Column("verdict", ("terminal",), prose=True),
    )  # fmt: skip
    return Table(
        "decoding", columns, tuple(_cells(found, way) for way in found.ways), tuple(map(_exact, found.ways)), title,
        "samplers", caption=caption, style="tight", below=(*notes, caption),
    )  # fmt: skip


def _cells(found: Decoding, way: DecodingResult) -> tuple[Cell, ...]:
    right = [percent(each, sign=False) for each in _ends(way.right) if each is not None]
    bounds = [percent(each) for each in _ends(way.effect)[1:] if each is not None]
    effect = f"{percent(way.effect.estimate, margin=found.margin)} [{bounds[0]}, {bounds[1]}]" if way.effect else ""
    colour, one_arm = tone(way.verdict), len({each.arm for each in found.ways}) == 1
    return (
        way.label if one_arm else f"{way.arm}: {way.label}", f"{right[0]} [{right[1]}, {right[2]}]" if way.right else "",
        f"{way.right.estimate:.1%}" if way.right else "", effect, pvalue(way.p_holm, found.alpha),
        pvalue(way.p_mcnemar, found.alpha), _told(way.calls, ".1f"), _told(way.tokens_per_call, ".2f"), _told(way.ms, ".1f"),
        str(way.n), Prose("; ".join((way.verdict, *way.notes)), colour), Prose(way.verdict, colour),
    )  # fmt: skip


def _exact(way: DecodingResult) -> dict[str, Any]:
    numbers: dict[str, Any] = {"arm": way.arm, "way": way.name, "n": way.n, "verdict": way.verdict}
    for name, mean in (("right", way.right), ("effect", way.effect)):
        numbers |= {f"{name}_{end}": value for end, value in zip(ENDS, _ends(mean), strict=True)}
    return numbers | {key: getattr(way, key) for key in COSTS}


def _ends(mean: ClusteredMean | None) -> tuple[float | None, ...]:
    return (mean.estimate, mean.low, mean.high) if mean else (None, None, None)


def _told(value: float | None, form: str) -> str:
    return "" if value is None else f"{value:{form}}"


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
