"""From a study to its answer: a table per metric, a headline in words, and the arm that may be exported."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from analysis.compare import VERDICT_FLOOR, PairedEffect, equivalence, holm, paired_effect, verdict
from analysis.frame import Study
from analysis.power import reaches_significance
from analysis.speed import SpeedRow, speeds
from core.errors import UserError
from core.metrics import METRICS

if TYPE_CHECKING:
    from analysis.factorial import Factorial

AMONG = ", among runs that finished"
OTHER_DATA = "trained on other data"


@dataclass(frozen=True)
class Row:
    """One arm against the control in one metric; `effect` is None where no comparison can be made, `notes` say why."""

    arm: str
    label: str
    mean: float | None
    sd: float | None
    n: int
    effect: PairedEffect | None
    p_holm: float | None
    p_equivalence: float | None
    verdict: str
    notes: tuple[str, ...]


@dataclass(frozen=True)
class MetricTable:
    """All arms in one metric, the control first. Each metric is its own family of comparisons."""

    metric: str
    label: str
    unit: str
    goal: str
    primary: bool
    margin: float | None
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Planned:
    """A planned comparison of two arms in the primary metric: the first minus the second; else as in `Row`."""

    arms: tuple[str, str]
    label: str
    effect: PairedEffect | None
    p_holm: float | None
    p_equivalence: float | None
    verdict: str
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Judgement:
    """What a study says. `winner` is an arm that may be exported, or None with the reason.

    exploratory: why the design can't be expected to reach significance; empty where it can.
    """

    question: str
    headline: str
    tables: tuple[MetricTable, ...]
    winner: str | None
    winner_reason: str
    noise_sd: float | None
    counts: Mapping[str, int]
    set_aside: Mapping[str, int]
    unreadable: tuple[str, ...]
    design: Mapping[str, Any]
    exploratory: str
    contrasts: tuple[Planned, ...]
    speeds: tuple[SpeedRow, ...]
    main_effects: "Factorial | None"
    interactions: "Factorial | None"
    factorial_note: str

    def to_dict(self) -> dict[str, Any]:
        """Every number of the report, JSON-ready: what isn't a finite number is null."""
        return _plain(asdict(self))


def judge(study: Study) -> Judgement:
    """Compare every arm with the control in the primary and the secondary metrics."""
    design = study.design
    names = [design["metric"], *design["secondary"]]
    tables = tuple(_table(study, metric, primary=metric == design["metric"]) for metric in names)
    winner, reason = _winner(study, tables[0])
    main, interactions, note = _factorial(study)
    planned = _planned(study)
    sds = [row.effect.sd for row in tables[0].rows if row.effect is not None]
    exploratory = _exploratory(design)
    words = [exploratory, _headline(study, tables[0]), *_planned_words(planned), *_asides(tables[1:])]
    return Judgement(
        question=design["question"],
        headline=" ".join(line for line in words if line),
        tables=tables,
        winner=winner,
        winner_reason=reason,
        noise_sd=max(sds) if sds else None,
        counts={"complete": study.complete, "failed": study.failed, "missing": study.missing},
        set_aside=dict(study.set_aside),
        unreadable=study.unreadable,
        design=design,
        exploratory=exploratory,
        contrasts=planned,
        speeds=speeds(study),
        main_effects=main,
        interactions=interactions,
        factorial_note=note,
    )


def _exploratory(design: Mapping[str, Any]) -> str:
    seeds, arms = len(design["seeds"]), len(design["arms"]) - 1
    reach = reaches_significance(seeds, alpha=design["alpha"], power=design["power"], comparisons=max(1, arms))
    if reach.ok:
        return ""
    needed = f"{reach.seeds_needed} would"
    return f"Exploratory: {seeds} seeds for {arms} arms can't be expected to reach significance ({needed})."


def _planned(study: Study) -> tuple[Planned, ...]:
    """The planned contrasts in the primary metric, Holm-adjusted among themselves."""
    design, drafts = study.design, []
    metric, margin = design["metric"], design["margin"]
    for one, two in design.get("contrasts", ()):
        label = f"{study.labels[one]} − {study.labels[two]}"
        own, base = study.values(one, metric), study.values(two, metric)
        both, effect, p_same, notes = np.isfinite(own) & np.isfinite(base), None, None, []
        if any(study.data_differs(one, two, seed) for seed in design["seeds"]):
            drafts.append(
                Planned(
                    (one, two),
                    label,
                    None,
                    None,
                    None,
                    "no verdict",
                    (f"{OTHER_DATA} than each other, so not compared",),
                )
            )
            continue
        if both.sum() != len(own):
            notes.append(f"compared on {int(both.sum())} of {len(own)} seeds, where both arms finished")
        try:
            effect = paired_effect(base[both], own[both])
            if both.sum() < VERDICT_FLOOR:
                notes.append(f"{int(both.sum())} pairs are too few for a verdict ({VERDICT_FLOOR} needed)")
            elif margin is not None:
                p_same = equivalence(base[both], own[both], margin=margin)
        except UserError as error:
            notes.append(str(error))
        drafts.append(Planned((one, two), label, effect, None, p_same, "no verdict", tuple(notes)))
    tested = [row for row in drafts if row.effect is not None and row.effect.n >= VERDICT_FLOOR]
    adjusted = holm([row.effect.pvalue for row in tested if row.effect])
    same = holm([row.p_equivalence or 0.0 for row in tested]) if margin is not None else [None] * len(tested)
    judged = {}
    for row, p, q in zip(tested, adjusted, same, strict=True):
        assert row.effect is not None
        q = None if q is None else float(q)
        words: str = verdict(row.effect.estimate, float(p), q, goal=METRICS[metric].goal, alpha=design["alpha"])
        lost = sum(_failures(study, arm, metric) for arm in row.arms)
        words = f"{words}{AMONG} ({lost} failed)" if lost else words
        judged[row.arms] = replace(row, p_holm=float(p), p_equivalence=q, verdict=words)
    return tuple(judged.get(row.arms, row) for row in drafts)


def _planned_words(planned: tuple[Planned, ...]) -> list[str]:
    judged = [row for row in planned if row.p_holm is not None]
    return [f"Planned contrasts: {'; '.join(f'“{row.label}”: {row.verdict}' for row in judged)}."] if judged else []


def _factorial(study: Study) -> "tuple[Factorial | None, Factorial | None, str]":
    if len(study.design["factors"]) < 2:
        return None, None, ""
    from analysis import factorial  # pandas takes half a second to import

    return factorial.of_study(study)


def _table(study: Study, metric: str, *, primary: bool) -> MetricTable:
    design, known = study.design, METRICS[metric]
    margin = design["margin"] if primary else None
    control = design["control"]
    drafts = [_draft(study, metric, arm, margin) for arm in study.arms]
    tested = [row for row in drafts if row.effect is not None and row.effect.n >= VERDICT_FLOOR]
    adjusted = dict(zip([r.arm for r in tested], holm([r.effect.pvalue for r in tested if r.effect]), strict=True))
    with_margin = [row for row in tested if row.p_equivalence is not None]
    same = dict(zip([r.arm for r in with_margin], holm([r.p_equivalence or 0.0 for r in with_margin]), strict=True))
    rows = []
    for row in drafts:
        if row.arm == control or row.arm not in adjusted:
            rows.append(row)
            continue
        assert row.effect is not None
        p_holm, p_same = float(adjusted[row.arm]), same.get(row.arm)
        p_same = None if p_same is None else float(p_same)
        words: str = verdict(row.effect.estimate, p_holm, p_same, goal=known.goal, alpha=design["alpha"])
        notes = row.notes
        if words in ("better", "worse") and p_same is not None and p_same < design["alpha"]:
            notes += (f"the difference is real but smaller than the margin of {margin:g}",)
        failures, lost = _failures(study, row.arm, metric), _failures(study, control, metric)
        if failures:
            words = f"{words}{AMONG} ({failures} failed)"
        if lost:  # the control's loss doesn't speak against the arm
            notes += (f"the control lost {lost} of its runs",)
        fields: dict[str, Any] = vars(row) | {
            "p_holm": p_holm,
            "p_equivalence": p_same,
            "verdict": words,
            "notes": notes,
        }
        rows.append(Row(**fields))
    return MetricTable(metric, known.label, known.unit, known.goal, primary, margin, tuple(rows))


def _draft(study: Study, metric: str, arm: str, margin: float | None) -> Row:
    control = study.design["control"]
    own, base = study.values(arm, metric), study.values(control, metric)
    finished = own[np.isfinite(own)]
    mean = float(finished.mean()) if len(finished) else None
    sd = float(finished.std(ddof=1)) if len(finished) > 1 else None
    notes = _notes(study, arm, metric, len(finished))
    row: dict[str, Any] = {"arm": arm, "label": study.labels[arm], "mean": mean, "sd": sd, "n": len(finished)}
    if arm == control:
        return Row(**row, effect=None, p_holm=None, p_equivalence=None, verdict="control", notes=notes)
    both = np.isfinite(own) & np.isfinite(base)
    foreign = [seed for seed in study.design["seeds"] if study.data_differs(arm, control, seed)]
    if foreign:
        notes += (f"{OTHER_DATA} than the control, so not compared",)
        return Row(**row, effect=None, p_holm=None, p_equivalence=None, verdict="no verdict", notes=notes)
    if both.sum() != len(own):
        notes += (f"compared on {int(both.sum())} of {len(own)} seeds, where both arms finished",)
    words, effect, p_same = "no verdict", None, None
    try:
        effect = paired_effect(base[both], own[both])
        if both.sum() < VERDICT_FLOOR:
            notes += (f"{int(both.sum())} pairs are too few for a verdict ({VERDICT_FLOOR} needed)",)
        elif margin is not None:
            p_same = equivalence(base[both], own[both], margin=margin)
    except UserError as error:
        notes += (str(error),)
    return Row(**row, effect=effect, p_holm=None, p_equivalence=p_same, verdict=words, notes=notes)


def _arm_notes(study: Study, arm: str) -> list[str]:
    """What is to be known of an arm whatever the metric: what its design says of it, and its alarms."""
    notes = [note for entry in study.design["arms"] if entry["name"] == arm for note in entry.get("notes", ())]
    alarmed = [alarm for record in study.records_of(arm) for alarm in record.alarms]
    for kind in dict.fromkeys(alarm["kind"] for alarm in alarmed):
        of_kind = [alarm for alarm in alarmed if alarm["kind"] == kind]
        runs = "1 run" if len(of_kind) == 1 else f"{len(of_kind)} runs"
        notes.append(f"{kind} in {runs} (first: step {of_kind[0]['step']}, {of_kind[0]['detail']})")
    return notes


def _notes(study: Study, arm: str, metric: str, finished: int) -> tuple[str, ...]:
    notes = _arm_notes(study, arm) if metric == study.design["metric"] else []
    failed = [record for record in study.records_of(arm) if record.status == "failed"]
    if failed:
        notes.append(f"{len(failed)} of {len(study.design['seeds'])} runs failed: {failed[0].reason}")
    absent = len(study.design["seeds"]) - len(study.records_of(arm))
    if absent:
        notes.append(f"{absent} of {len(study.design['seeds'])} runs are not recorded yet")
    broken = _failures(study, arm, metric) - len(failed)
    if broken:
        notes.append(f"{broken} finished runs have no finite {metric}, and count as failed")
    elif finished < len(study.records_of(arm)) - len(failed):
        notes.append(f"some runs don't report {metric}")
    return tuple(notes)


def _failures(study: Study, arm: str, metric: str) -> int:
    """Runs that failed, and finished ones whose metric isn't finite though the arm reports it."""
    records = study.records_of(arm)
    failed = sum(record.status == "failed" for record in records)
    if not any(metric in record.metrics for record in records if record.status == "complete"):
        return failed  # an arm without this metric at all, as a dense model has no expert load
    return failed + len(records) - failed - int(np.isfinite(study.values(arm, metric)).sum())


def _headline(study: Study, table: MetricTable) -> str:
    seeds = max((row.effect.n for row in table.rows if row.effect), default=0)
    open_runs = f" ({study.missing} of {study.missing + len(study.cells)} runs to go)" if study.missing else ""
    judged = [row for row in table.rows if row.p_holm is not None]
    if not judged:
        return f"No verdict yet: too few finished pairs of runs{open_runs}."
    groups: dict[str, list[Row]] = {}
    for row in judged:
        groups.setdefault(row.verdict, []).append(row)
    parts = [_sentence(words, rows, table, len(judged)) for words, rows in groups.items()]
    return f"{table.label} over {seeds} seeds: {'; '.join(parts)}{open_runs}."


def _asides(tables: tuple[MetricTable, ...]) -> list[str]:
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
    who = f"all {judged} arms" if len(rows) == judged > 1 else " and ".join(f"“{row.label}”" for row in rows)
    if words.startswith("no detectable"):
        return f"no detectable difference from the control for {who}{among}"
    if words.startswith("equivalent"):
        return f"{who} {'is' if len(rows) == 1 else 'are'} {words} of {table.margin:g} {table.unit}{among}"
    biggest = max((row.effect for row in rows if row.effect), key=lambda effect: abs(effect.estimate))
    unit = f" {table.unit}" if table.unit else ""
    size = f"by {abs(biggest.estimate):.2g}{unit}" if len(rows) == 1 else f"by up to {abs(biggest.estimate):.2g}{unit}"
    return f"{who} {'is' if len(rows) == 1 else 'are'} {words} than the control {size}{among}"


def _winner(study: Study, table: MetricTable) -> tuple[str | None, str]:
    control = study.design["control"]
    if study.missing:
        return None, f"{study.missing} runs of the design are missing; a winner is named when all are recorded"
    if table.rows[0].n == 0:
        return None, "the control has no finished run"
    if not any(row.p_holm is not None for row in table.rows):
        return None, "no arm has enough finished runs to be compared"
    better = [row for row in table.rows if row.verdict == "better"]  # without failures, by its words
    if not better:
        return control, f"no arm is better than the control in {table.label}, so the control stands"
    best = min(better, key=lambda row: row.effect.estimate * (1 if table.goal == "min" else -1) if row.effect else 0)
    assert best.effect is not None
    said = f"better than the control by {abs(best.effect.estimate):.3g} {table.unit}".strip()
    lost = _failures(study, control, table.metric)
    said += f"; the control lost {lost} of its runs" if lost else ""
    return best.arm, f"{said} (Holm p = {best.p_holm:.2g}); not yet confirmed on fresh seeds"


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    return value
