"""The answer of a study of arms: every arm beside the control in each metric, and the parts that its design asks for."""

from typing import Any

from analysis.formatting import coverage, pvalue, size
from analysis.statistics.power import reach_of
from analysis.study import Study
from analysis.verdicts.answer import PARTS, Context, Judgement
from analysis.verdicts.arm_figures import arm_figures
from analysis.verdicts.comparison_tables import contrasts_table, verdict_table
from analysis.verdicts.comparisons import (
    ACROSS,
    AMONG,
    MetricTable,
    Planned,
    Row,
    failures,
    metric_table,
    planned_contrasts,
)
from analysis.verdicts.lineage import declared, notes, optional_stopping
from analysis.verdicts.until_decided import SequentialRun, sequential_run
from core.records.designs import Design
from core.records.metrics import METRICS
from core.runtime.units import counted, ranked, significant

PAIRED = "under common random numbers (data order, masks, timesteps, initial weights)"
UNCONFIRMED = "not yet confirmed on fresh seeds"  # what a winner's reason ends with


def judge(study: Study, brief: bool = False) -> Judgement:
    """Compare every arm with the control in the primary and the secondary metrics, and run the parts of the analysis.

    brief: without learning speeds, main effects and interactions.
    """
    design = study.design
    sequential = sequential_run(study) if design.adaptive is not None else None
    looks = sequential.looks_of if sequential else None
    whole, study = study, study.within(sequential.seeds) if sequential else study
    names = [design.metric, *design.secondary]
    tables = tuple(metric_table(study, metric, primary=metric == design.metric, looks=looks) for metric in names)
    planned = planned_contrasts(study, looks)
    context = Context(tables[0], sequential, brief)
    kinds = sorted(PARTS.entries(), key=lambda kind: kind.order)
    found = [part for kind in kinds if (part := kind.implementation(study, context)) is not None]
    sds = [row.effect.sd for row in tables[0].rows if row.effect is not None]
    weak = exploratory(design)
    # A sentence for each secondary metric in which some arm differs from the control.
    asides = [(table.label, _parts(table, ("better", "worse"))) for table in tables[1:]]
    words = [
        weak,
        _headline(study, tables[0]),
        _contrasts(planned),
        *(f"{one}: {said}." for one, said in asides if said),
    ]
    words = words if len(design.arms) > 1 else []  # a design of one arm asks how to decode it
    words += [*(part.sentence for part in found), optional_stopping(study)]
    winner, reason = _winner(study, tables[0])
    results: dict[str, Any] = {"tables": tables, "contrasts": planned, "exploratory": weak}
    results["noise_sd"] = max(sds, default=None)
    for each in found:
        results |= each.found
    return Judgement(
        study=study,
        headline=" ".join(line for line in words if line),
        winner=winner,
        winner_reason=reason,
        tables=(
            *(verdict_table(table, design.alpha) for table in tables),
            *contrasts_table(planned, tables[0], design.alpha),
            *(table for part in found for table in part.tables),
        ),
        found=results,
        draw=lambda: [*arm_figures(whole, tables), *(figure for part in found for figure in part.figures)],
        pages=("verdict", "arms"),
        extent=f"{len(design.arms)} arms × {'up to ' if sequential else ''}{counted(len(design.seeds), 'seed')}",
        methods=_methods(study, tables[0], sequential),
        sources=(
            "adjusted p-values (Holm 1979)",
            *(["equivalence by two one-sided tests (Schuirmann 1987)"] if tables[0].margin else []),
            *(source for part in found for source in part.sources),
        ),
        notes=notes(whole),
        declared=declared(whole),
    )


def exploratory(design: Design) -> str:
    """Reason why a design can't be expected to reach significance; empty if it can."""
    reach, seeds, arms = reach_of(design), len(design.seeds), len(design.arms) - 1
    if reach.ok:
        return ""
    can_not = f"{seeds} seeds for {arms} arms can't be expected to reach significance"
    return f"Exploratory: {can_not} ({reach.seeds_needed} would)."


def _headline(study: Study, table: MetricTable) -> str:
    counts = [row.effect.n for row in table.rows if row.effect] or [0]
    adaptive = study.design.adaptive is not None and min(counts) < max(counts)
    seeds = f"{min(counts)} to {max(counts)}" if adaptive else str(max(counts))
    waits = study.missing > 0 and study.design.logs is None  # what a finished log lacks won't come
    open_runs = f" ({study.missing} of {study.missing + len(study.cells)} runs to go)" if waits else ""
    parts = _parts(table)
    if not parts:
        return f"No verdict yet: too few finished pairs of runs{open_runs}."
    return f"{table.label} over {seeds} seeds: {parts}{open_runs}."


def _parts(table: MetricTable, verdicts: tuple[str, ...] = ("",)) -> str:
    """The judged arms by verdict, as far as it begins with one of those; empty where there is none."""
    judged = [row for row in table.rows if row.p_holm is not None]
    groups: dict[str, list[Row]] = {}
    for row in judged:
        if row.verdict.startswith(verdicts):
            groups.setdefault(row.verdict, []).append(row)
    return "; ".join(_sentence(words, rows, table, len(judged)) for words, rows in groups.items())


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


def _contrasts(planned: tuple[Planned, ...]) -> str:
    judged = [f"“{row.label}”: {row.verdict}" for row in planned if row.p_holm is not None]
    return f"Planned contrasts: {'; '.join(judged)}." if judged else ""


def _winner(study: Study, table: MetricTable) -> tuple[str | None, str]:
    control = study.design.control
    if study.missing:
        return (
            None,
            f"{counted(study.missing, 'run')} of the design still missing; a winner is named when all are recorded",
        )
    if table.rows[0].n == 0:
        return None, "the control has no finished run"
    if len(table.rows) == 1:
        return control, "it is the only arm"
    if not any(row.p_holm is not None for row in table.rows):
        return None, "no arm has enough finished runs to be compared"
    better = [row for row in table.rows if row.verdict == "better"]  # without failures, by its words
    if not better:
        return control, f"no arm is better than the control in {table.label}, so the control stands"
    sign = 1 if table.goal == "min" else -1
    best = better[ranked([sign * row.effect.estimate if row.effect else 0 for row in better])[0]]
    assert best.effect is not None
    said = f"better than the control by {significant(abs(best.effect.estimate), 3)} {table.unit}".strip()
    lost = failures(study, control, table.metric)
    said += f"; the control lost {lost} of its runs" if lost else ""
    return best.arm, f"{said} (Holm p = {pvalue(best.p_holm, study.design.alpha)}); {UNCONFIRMED}"


def _methods(study: Study, table: MetricTable, sequential: SequentialRun | None) -> str:
    """Method of the comparison, in a sentence that holds for the records as they are; empty before any comparison."""
    effects = [row.effect for row in table.rows if row.effect]
    if not effects:
        return ""
    design, pairs = study.design, sorted({effect.n for effect in effects})
    many = f"{pairs[0]}" if len(pairs) == 1 else f"{pairs[0]} to {pairs[-1]}"
    arms = "an arm" if len(effects) == 1 else f"each of {len(effects)} arms"
    kept = "any-time valid intervals" if sequential else "t intervals of the mean paired difference"
    told = (
        f"We compared {arms} with the control “{study.labels[design.control]}” in {METRICS[design.metric].label}"
        f" over {many} seeds {PAIRED}, by "
        f"{coverage(design.alpha).replace('interval', kept)}"
        f", adjusting p-values by Holm's method at a family-wise level of {design.alpha:g}"
    )
    if design.margin:
        margin = f"{design.margin:g} {table.unit}".rstrip()
        told += f"; equivalence was tested by two one-sided tests with a margin of {margin}"
    lost = study.failed
    return told + (
        f"; {lost} run{'s' if lost > 1 else ''} failed and {'are' if lost > 1 else 'is'} left out." if lost else "."
    )
