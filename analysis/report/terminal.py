"""The report on a terminal of 80 columns: its headline and tables."""

from typing import Any

from rich.console import Group
from rich.text import Text

from analysis.formatting import coverage, crossed, kind, number, pvalue, ratio, signed
from analysis.verdicts import decoding
from analysis.verdicts import ladder as ladder_words
from analysis.verdicts.comparisons import MetricTable
from analysis.verdicts.judge import Judgement
from core.runtime.terminal import line
from core.runtime.terminal_table import labelled
from core.runtime.units import counted

VERDICT_STYLES = {"better": "green", "worse": "red", "equivalent": "blue"}


def terminal_table(judgement: Judgement, *, titled: bool = True) -> Group:
    """Headline and verdict tables for a terminal of 80 columns. titled: below the question."""
    title = [line(judgement.question, style="bold")] if titled else []
    parts: list[Any] = [*title, line(judgement.headline), Text()]
    for table in judgement.tables:
        parts += _terminal_metric(table, judgement.design["alpha"])
        parts += [line(table.likelihoods, style="dim")] if table.likelihoods else []
        parts += [Text()]
    parts += _terminal_ladder(judgement)
    for further in (_terminal_decoding, _terminal_contrasts, _terminal_course, _terminal_speeds, _terminal_factorial):
        parts += further(judgement)
    counts = judgement.counts
    parts.append(line(f"runs: {counts['complete']} complete, {counts['failed']} failed, {counts['missing']} missing"))
    parts += [line(f"set aside: {n} {reason}") for reason, n in judgement.set_aside.items()]
    parts += [line(f"unreadable: {each}", style="red") for each in judgement.unreadable]
    notes = {f"{row.label}: {note}": None for table in judgement.tables for row in table.rows for note in row.notes}
    parts += [line(f"note: {note}") for note in (*notes, *judgement.notes)]
    parts += [line(judgement.declared, style="dim")] if judgement.declared else []
    return Group(*parts)


def _terminal_metric(table: MetricTable, alpha: float) -> list[Any]:
    unit = f", {table.unit}" if table.unit else ""
    role = "" if table.primary else " (secondary)"
    out = labelled("arm", "mean", "effect", coverage(alpha), "Holm p", "n", "verdict", folded=("verdict",))
    for row in table.rows:
        effect = row.effect
        interval = f"{signed(effect.low)} {signed(effect.high)}" if effect else ""
        cells = [signed(effect.estimate, table.margin) if effect else "", interval]
        n = effect.n if effect else row.n
        verdict = line(row.verdict, style=VERDICT_STYLES.get(kind(row), ""))
        out.add(row.label, number(row.mean), *cells, pvalue(row.p_holm, alpha), str(n), verdict)
    return [line(f"{table.label}{unit}{role}", style="dim"), out]


def _terminal_ladder(judgement: Judgement) -> list[Any]:
    """All tables of a ladder but that of its points, which the page has."""
    parts: list[Any] = []
    for sheet in ladder_words.sheets(judgement.ladder) if judgement.ladder else []:
        if sheet.name != "points":
            out = labelled(*sheet.head)
            for label, *cells in sheet.shown:
                out.add(label, *cells)
            parts += [line(sheet.title, style="dim"), out, Text()]
    if judgement.ladder:
        parts += [line(each) for each in ladder_words.distances(judgement.ladder)]
        parts += [line(f"note: {note}") for note in judgement.ladder.notes]
    return parts


def _terminal_decoding(judgement: Judgement) -> list[Any]:
    if judgement.decoding is None:
        return []
    found = decoding.sheet(judgement.decoding)
    out = labelled("decoding", "right", "effect", "Holm p", "TPF", "verdict", folded=("verdict",))
    for way, row in zip(judgement.decoding.ways, found.shown, strict=True):
        right = f"{way.right.estimate:.1%}" if way.right else ""
        words = line(way.verdict, style=VERDICT_STYLES.get(way.verdict.split(" ")[0], ""))
        out.add(row[0], right, row[2], row[3], row[6], words)
    notes = {f"{way.label}: {note}": None for way in judgement.decoding.ways for note in way.notes}
    said = [line(f"note: {note}") for note in notes]
    return [line(found.title, style="dim"), out, *said, line(found.caption, style="dim"), Text()]


def _terminal_contrasts(judgement: Judgement) -> list[Any]:
    rows = [row for row in judgement.contrasts if row.effect is not None]
    if not rows:
        return []
    unit, alpha = judgement.tables[0].unit, judgement.design["alpha"]
    title = f"planned contrasts in {judgement.tables[0].label}{f', {unit}' if unit else ''}"
    out = labelled("of", "effect", coverage(alpha), "Holm p", "n", "verdict", folded=("verdict",))
    for row in rows:
        assert row.effect is not None
        interval = f"{signed(row.effect.low)} {signed(row.effect.high)}"
        effect = signed(row.effect.estimate, judgement.tables[0].margin)
        cells = (effect, interval, pvalue(row.p_holm, alpha), str(row.effect.n))
        out.add(row.label, *cells, line(row.verdict))
    return [line(title, style="dim"), out, Text()]


def _terminal_course(judgement: Judgement) -> list[Any]:
    if judgement.course is None or not judgement.course.looks:
        return []
    out = labelled("look", "open", "decided", folded=("decided",))
    for look in judgement.course.looks:
        left = sum(step.decision == "open" for step in look.steps)
        out.add(f"{counted(look.seeds, 'seed')}", str(left), line("; ".join(look.decided)))
    return [line("bought until decided", style="dim"), out, line(judgement.course.kept), Text()]


def _terminal_speeds(judgement: Judgement) -> list[Any]:
    rows = [row for row in judgement.speeds if row.speed is not None]
    if not rows:
        return []
    title = "tokens for the same value, as a share of the control's (below 1: learns faster)"
    alpha = judgement.design["alpha"]
    out = labelled("arm", "share", coverage(alpha), "Holm p", "as good")
    for row in rows:
        assert row.speed is not None
        share, interval = ratio(row.speed.share), f"{ratio(row.speed.low)} {ratio(row.speed.high)}"
        out.add(row.label, share, interval, pvalue(row.p_holm, alpha), f"{row.speed.reached} of {row.speed.n}")
    return [line(title, style="dim"), out, Text()]


def _terminal_factorial(judgement: Judgement) -> list[Any]:
    if judgement.interactions is None:
        note = judgement.factorial_note
        return [line(f"no main effects and interactions: {note}"), Text()] if note else []
    table, alpha, parts = judgement.tables[0], judgement.design["alpha"], []
    where = f"{table.label}{f', {table.unit}' if table.unit else ''}"
    for title, family in (
        (f"main effects in {where}: averaged over the other factors", judgement.main_effects),
        (f"interactions in {where}: how much one changes the other's effect", judgement.interactions),
    ):
        out = labelled("of", "effect", coverage(alpha), "Holm p")
        for contrast in family.contrasts if family else ():
            interval = f"{signed(contrast.effect.low)} {signed(contrast.effect.high)}"
            out.add(crossed(contrast), signed(contrast.effect.estimate), interval, pvalue(contrast.p_holm, alpha))
        parts += [line(title, style="dim"), out, Text()]
    return parts
