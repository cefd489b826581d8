"""Headline: a study's tables in words."""

from analysis.formatting import size
from analysis.study import Study
from analysis.verdicts.comparisons import ACROSS, AMONG, MetricTable, Planned, Row
from analysis.verdicts.until_decided import SequentialRun


def headline(study: Study, table: MetricTable) -> str:
    """The primary metric in a sentence."""
    counts = [row.effect.n for row in table.rows if row.effect] or [0]
    adaptive = study.design.adaptive is not None and min(counts) < max(counts)
    seeds = f"{min(counts)} to {max(counts)}" if adaptive else str(max(counts))
    open_runs = f" ({study.missing} of {study.missing + len(study.cells)} runs to go)" if study.missing else ""
    judged = [row for row in table.rows if row.p_holm is not None]
    if not judged:
        return f"No verdict yet: too few finished pairs of runs{open_runs}."
    groups: dict[str, list[Row]] = {}
    for row in judged:
        groups.setdefault(row.verdict, []).append(row)
    parts = [_sentence(words, rows, table, len(judged)) for words, rows in groups.items()]
    return f"{table.label} over {seeds} seeds: {'; '.join(parts)}{open_runs}."


def asides(tables: tuple[MetricTable, ...]) -> list[str]:
    """A sentence for each secondary metric in which some arm differs from the control."""
    sentences = []
    for table in tables:
        groups: dict[str, list[Row]] = {}
        for row in table.rows:
            if row.p_holm is not None and row.verdict.startswith(("better", "worse")):
                groups.setdefault(row.verdict, []).append(row)
        judged = sum(row.p_holm is not None for row in table.rows)
        if groups:
            parts = "; ".join(_sentence(words, rows, table, judged) for words, rows in groups.items())
            sentences.append(f"{table.label}: {parts}.")
    return sentences


def _sentence(words: str, rows: list[Row], table: MetricTable, judged: int) -> str:
    words, _, failures = words.partition(AMONG)
    among = f" among runs that finished{failures}" if failures else ""
    words, across, _ = words.partition(ACROSS)
    among = f" ({ACROSS[2:]}){among}" if across else among
    every = "both arms" if judged == 2 else f"all {judged} arms"
    who = every if len(rows) == judged > 1 else " and ".join(f"“{row.label}”" for row in rows)
    if words.startswith("no detectable"):
        return f"no detectable difference from the control for {who}{among}"
    if words.startswith("equivalent"):
        return f"{who} {'is' if len(rows) == 1 else 'are'} {words} of {table.margin:g} {table.unit}{among}"
    biggest = max((row.effect for row in rows if row.effect), key=lambda effect: abs(effect.estimate))
    unit = f" {table.unit}" if table.unit else ""
    by = f"by {'' if len(rows) == 1 else 'up to '}{size(biggest.estimate, table.margin)}{unit}"
    return f"{who} {'is' if len(rows) == 1 else 'are'} {words} than the control {by}{among}"


def contrasts(planned: tuple[Planned, ...]) -> list[str]:
    """A sentence for the planned contrasts that were judged."""
    judged = [row for row in planned if row.p_holm is not None]
    return [f"Planned contrasts: {'; '.join(f'“{row.label}”: {row.verdict}' for row in judged)}."] if judged else []


def savings(bought: SequentialRun) -> str:
    """Runs that a sequential design has trained so far, beside the fixed design that it stands for."""
    if not bought.looks:
        return ""
    fixed = f"the fixed design's {bought.fixed_runs} ({1 - bought.runs / bought.fixed_runs:.0%} fewer)"
    left = sum(decision == "undecided" for decision in bought.decisions.values())
    so_far = "Bought until decided" if bought.decided else "Being bought until decided"
    undecided = f", {left} of {len(bought.decisions)} comparisons undecided at the last seed" if left else ""
    return f"{so_far}: {bought.runs} runs beside {fixed}{undecided}."
