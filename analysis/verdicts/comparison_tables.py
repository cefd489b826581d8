"""Tables of paired comparisons: arms beside the control by metric, planned contrasts, and cells of effects."""

from collections.abc import Sequence
from typing import Any

from analysis.formatting import correlation, coverage, number, pvalue, signed
from analysis.statistics.compare import PairedEffect
from analysis.table import EVERYWHERE, Cell, Column, Prose, Range, Table
from analysis.verdicts.comparisons import MetricTable, Planned, Row
from core.records.metrics import METRICS

EXACT = ("n", "estimate", "low", "high", "pvalue", "effect_size", "correlation")


def effect_columns(alpha: float) -> tuple[Column, ...]:
    """The columns of `effect_cells`."""
    return Column("effect"), Column(coverage(alpha)), Column("Holm p")


def effect_cells(
    effect: PairedEffect | None, p_holm: float | None, alpha: float, margin: float | None = None
) -> tuple[Cell, ...]:
    """An effect, its interval and its p-value; empty without an effect. margin: the effect is rounded to its side of it."""
    if effect is None:
        return "", Range(), ""
    return signed(effect.estimate, margin), Range(signed(effect.low), signed(effect.high)), pvalue(p_holm, alpha)


def exact_effect(effect: PairedEffect | None) -> dict[str, Any]:
    """An effect's numbers in full, None where there is none."""
    return {name: getattr(effect, name) if effect is not None else None for name in EXACT}


def tone(words: str) -> str:
    """A verdict's first word: the colour that it is shown in."""
    return words.split(" ")[0].rstrip(",;")


def verdict_table(table: MetricTable, alpha: float) -> Table:
    """Every arm beside the control in one metric."""
    rows, exact = [], []
    for row in table.rows:
        effect = row.effect
        sizes = (signed(effect.effect_size), correlation(effect.correlation)) if effect else ("", "")
        cells = effect_cells(effect, row.p_holm, alpha, table.margin)
        n = effect.n if effect else row.n
        rows.append((row.label, number(row.mean), *cells, *sizes, str(n), _verdict(row)))
        facts = {"arm": row.arm, "label": row.label, "mean": row.mean, "sd": row.sd}
        exact.append(facts | exact_effect(effect) | {"n": n} | _judged(row))
    title = table.title if table.primary else f"{table.title} (secondary)"
    caption = f"{METRICS[table.metric].meaning}; {'lower' if table.goal == 'min' else 'higher'} is better"
    if table.margin:
        caption += f"; differences below {table.margin:g} {table.unit} are declared not to matter"
    return Table(
        table.metric.replace("/", "-").replace("@", "-at-"),
        (
            Column(title, terminal="arm", file=table.title),
            Column("mean"),
            *effect_columns(alpha),
            Column("d_z", on=("page",)),
            Column("r", on=("page",)),
            Column("n"),
            Column("verdict", prose=True),
        ),
        tuple(rows),
        tuple(exact),
        title=title,
        place="verdict",
        label=f"Verdicts in {table.label}",
        caption=f"{caption}.{f' {table.likelihoods}' if table.likelihoods else ''}",
        style="cards",
        below=(table.likelihoods,) if table.likelihoods else (),
    )


def contrasts_table(planned: Sequence[Planned], primary: MetricTable, alpha: float) -> list[Table]:
    """The planned contrasts, if there are any."""
    rows = [
        (row.label, *effect_cells(row.effect, row.p_holm, alpha, primary.margin), str(row.effect.n) if row.effect else "",
         _verdict(row))
        for row in planned
    ]  # fmt: skip
    title = f"planned contrasts in {primary.title}"
    head = Column(title, terminal="of", file=primary.title)
    found = Table(
        "contrasts",
        (head, *effect_columns(alpha), Column("n"), Column("verdict", prose=True)),
        tuple(rows),
        tuple({"of": row.label, **exact_effect(row.effect), **_judged(row)} for row in planned),
        terminal=title,
        place="verdict",
        label="Planned contrasts",
        caption="The first arm minus the second within each seed; Holm adjusts over these rows.",
        hidden={"terminal": {place for place, row in enumerate(planned) if row.effect is None}},
        on=EVERYWHERE if any(row.effect for row in planned) else ("page", "file"),
    )
    return [found] if planned else []


def _verdict(row: Row | Planned) -> Prose:
    return Prose(row.verdict, tone(row.verdict), row.notes)


def _judged(row: Row | Planned) -> dict[str, Any]:
    return {"p_holm": row.p_holm, "p_equivalence": row.p_equivalence, "verdict": row.verdict}
