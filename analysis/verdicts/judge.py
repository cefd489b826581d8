"""From a study to its answer: a table per metric, a headline in words, and the arm that may be exported."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from analysis.formatting import pvalue
from analysis.statistics.factorial import Factorial, of_study
from analysis.statistics.power import reach_of
from analysis.study import Study
from analysis.verdicts.comparisons import MetricTable, Planned, failures, metric_table, planned_contrasts
from analysis.verdicts.decoding import Decoding, decoding
from analysis.verdicts.headline import asides, contrasts, headline, savings
from analysis.verdicts.learning_speed import SpeedRow, speeds
from analysis.verdicts.lineage import declared, looked_at, notes
from analysis.verdicts.until_decided import Course, course
from core.runtime.units import counted, ranked, significant

if TYPE_CHECKING:
    from analysis.scaling.ladder import Ladder


UNCONFIRMED = "not yet confirmed on fresh seeds"  # what a winner's reason ends with


@dataclass(frozen=True)
class Judgement:
    """What a study says. `winner` is an arm that may be exported, or None with the reason.

    exploratory: why the design can't be expected to reach significance; empty where it can. ladder: a fitted law, which
    answers a ladder instead of tables of arms. notes: what numbers don't tell of how they came
    about. declared: when, at which commit, and what of the design was changed since.
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
    main_effects: Factorial | None
    interactions: Factorial | None
    factorial_note: str
    course: Course | None = None
    decoding: Decoding | None = None
    ladder: "Ladder | None" = None
    notes: tuple[str, ...] = ()
    declared: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Every number of the report, JSON-ready: what isn't a finite number is null."""
        content = asdict(replace(self, ladder=None))
        return _plain(content | ({"ladder": self.ladder.to_dict()} if self.ladder else {}))


def judge(study: Study, *, brief: bool = False) -> Judgement:
    """Compare every arm with the control in the primary and the secondary metrics; or fit a ladder's law.

    brief: only what a headline needs: no law is fitted to a ladder; learning speeds, main effects and interactions are left
    out.
    """
    design = study.design
    if "ladder" in design:
        return _judge_ladder(study, brief)
    names = [design["metric"], *design["secondary"]]
    bought = course(study) if "adaptive" in design else None
    looks = bought.looks_of if bought else None
    whole = study
    study = study.within(bought.seeds) if bought else study
    tables = tuple(metric_table(study, metric, primary=metric == design["metric"], looks=looks) for metric in names)
    winner, reason = _winner(study, tables[0])
    main, interactions, note = (None, None, "") if brief else _factorial(study)
    planned = planned_contrasts(study, looks)
    sds = [row.effect.sd for row in tables[0].rows if row.effect is not None]
    weak = exploratory(design)
    decoded = decoding(study) if "decoders" in design else None
    words = [weak, headline(study, tables[0]), *contrasts(planned), *asides(tables[1:])]
    words = words if len(design["arms"]) > 1 else []  # a design of one arm asks how to decode it
    words += [decoded.headline] if decoded else []
    words += [savings(bought) if bought else "", looked_at(study)]
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
        exploratory=weak,
        contrasts=planned,
        speeds=() if bought or brief else speeds(study),
        main_effects=main,
        interactions=interactions,
        factorial_note=note,
        course=bought,
        decoding=decoded,
        notes=notes(whole),
        declared=declared(whole),
    )


def _judge_ladder(study: Study, brief: bool) -> Judgement:
    from analysis.scaling.ladder_fit import climb  # fits a law: scipy.optimize
    from analysis.verdicts import ladder as ladder_words

    found = None if brief else climb(study)
    total = study.missing + len(study.cells)
    return Judgement(
        question=study.design["question"],
        headline=ladder_words.headline(found) if found else f"{study.complete} of {total} runs to fit a law to.",
        tables=(),
        winner=None,
        winner_reason="a ladder's answer is a law, not an arm",
        noise_sd=None,
        counts={"complete": study.complete, "failed": study.failed, "missing": study.missing},
        set_aside=dict(study.set_aside),
        unreadable=study.unreadable,
        design=study.design,
        exploratory="",
        contrasts=(),
        speeds=(),
        main_effects=None,
        interactions=None,
        factorial_note="",
        ladder=found,
        notes=notes(study),
        declared=declared(study),
    )


def exploratory(design: Mapping[str, Any]) -> str:
    reach, seeds, arms = reach_of(design), len(design["seeds"]), len(design["arms"]) - 1
    if reach.ok:
        return ""
    needed = f"{reach.seeds_needed} would"
    return f"Exploratory: {seeds} seeds for {arms} arms can't be expected to reach significance ({needed})."


def _factorial(study: Study) -> tuple[Factorial | None, Factorial | None, str]:
    if len(study.design["factors"]) < 2:
        return None, None, ""
    if "adaptive" in study.design:
        return None, None, "arms have bought different numbers of seeds, and those with large effects the fewest"
    return of_study(study)


def _winner(study: Study, table: MetricTable) -> tuple[str | None, str]:
    control = study.design["control"]
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
    return best.arm, f"{said} (Holm p = {pvalue(best.p_holm, study.design['alpha'])}); {UNCONFIRMED}"


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {" − ".join(key) if isinstance(key, tuple) else str(key): _plain(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    return value
