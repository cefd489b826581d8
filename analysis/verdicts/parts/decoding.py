"""Decoding configurations beside one another: their table and their figure."""

from typing import Any

from analysis.figure import Dot, Figure, Lines, Series, View
from analysis.formatting import coverage, percent, pvalue
from analysis.statistics.clustered import Shift
from analysis.study import Study
from analysis.table import Cell, Column, Medium, Prose, Table
from analysis.verdicts.answer import Context, Part, part
from analysis.verdicts.comparison_tables import tone
from analysis.verdicts.decoding import Decoding, Way, decoding

ENDS = ("estimate", "low", "high")
COSTS = ("p_holm", "p_mcnemar", "p_equivalence", "calls", "tokens_per_call", "ms")


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
    notes = {f"note: {way.label}: {note}": None for way in found.ways for note in way.notes}
    columns = (
        Column("decoding"), Column("exact match", wide), Column("right", ("terminal",)), Column("effect"), Column("Holm p"),
        Column("McNemar p", wide), Column("NFE", wide), Column("TPF"), Column("ms", wide), Column("n", wide),
        Column("verdict", wide, prose=True), Column("verdict", ("terminal",), prose=True),
    )  # fmt: skip
    return Table(
        "decoding", columns, tuple(_cells(found, way) for way in found.ways), tuple(map(_exact, found.ways)), _title(found),
        "samplers", caption=caption, style="tight", below=(*notes, caption),
    )  # fmt: skip


def _cells(found: Decoding, way: Way) -> tuple[Cell, ...]:
    right = [percent(each, sign=False) for each in _ends(way.right) if each is not None]
    bounds = [percent(each) for each in _ends(way.effect)[1:] if each is not None]
    effect = f"{percent(way.effect.estimate, margin=found.margin)} [{bounds[0]}, {bounds[1]}]" if way.effect else ""
    colour = tone(way.verdict)
    return (
        _label(found, way), f"{right[0]} [{right[1]}, {right[2]}]" if way.right else "",
        f"{way.right.estimate:.1%}" if way.right else "", effect, pvalue(way.p_holm, found.alpha),
        pvalue(way.p_mcnemar, found.alpha), _told(way.calls, ".1f"), _told(way.tokens_per_call, ".2f"), _told(way.ms, ".1f"),
        str(way.n), Prose("; ".join((way.verdict, *way.notes)), colour), Prose(way.verdict, colour),
    )  # fmt: skip


def _exact(way: Way) -> dict[str, Any]:
    numbers: dict[str, Any] = {"arm": way.arm, "way": way.name, "n": way.n, "verdict": way.verdict}
    for name, mean in (("right", way.right), ("effect", way.effect)):
        numbers |= {f"{name}_{end}": value for end, value in zip(ENDS, _ends(mean), strict=True)}
    return numbers | {key: getattr(way, key) for key in COSTS}


def _ends(mean: Shift | None) -> tuple[float | None, ...]:
    return (mean.estimate, mean.low, mean.high) if mean else (None, None, None)


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
