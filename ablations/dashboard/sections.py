"""Sections of the live page, as plain data."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from ablations.cli.status import by_reason, tasks_said
from ablations.dashboard.curves import Reading
from ablations.dashboard.server import MISSING, installed
from analysis.study import Study
from analysis.verdicts.interim import Comparison, running
from analysis.verdicts.judge import judge
from analysis.verdicts.lineage import notes, optional_stopping
from core.records.designs import SearchDesign, StudyDesign
from core.records.metrics import METRICS
from sweeps.runs.status import STATES, Row, RunStatus, StudyStatus
from sweeps.search.status import ConfigurationStatus, SearchStatus

MOST_RUNS = 8  # named beside a reason


def head(design: StudyDesign, report: str) -> dict[str, Any]:
    """Head of the page. report: the command that writes the report."""
    metric = METRICS[design.primary]
    return {
        "ablation": design.ablation, "size": design.size, "question": design.question, "report": report,
        "label": metric.label, "unit": metric.unit, "goal": metric.goal,
    }  # fmt: skip


def progress(found: StudyStatus[Any] | None, study: Study | None, reading: Reading | None) -> dict[str, Any]:
    """Counts by state, in all and by arm, and the time left. By the ledger; by the records alone where it can't be read."""
    arms: list[dict[str, Any]] = []
    counts: Mapping[str, int] = {}
    if found is not None and not found.of_arms:
        counts = found.counts
    elif study is not None:
        rows: Iterable[RunStatus] = found.rows if found is not None else _recorded(study)
        by_arm: dict[str, dict[str, int]] = {arm: {} for arm in study.arms}
        for row in rows:
            by_arm[row.arm][row.state] = by_arm[row.arm].get(row.state, 0) + 1
        arms = [{"name": arm, "label": study.labels[arm], "states": by_arm[arm]} for arm in study.arms]
        counts = {state: sum(own.get(state, 0) for own in by_arm.values()) for state in STATES}
    return {
        "noun": found.noun if found else "run",
        "counts": {state: n for state, n in counts.items() if n}, "arms": arms,
        "seconds_left": found.seconds_left if found else None,
        "under_way": found.is_under_way if found else None,
        "preempted": found.preempted if found else 0, "deaths": found.deaths if found else 0,
        "slurm": tasks_said(found) if found else [],
        "reading": [reading.done, reading.total] if reading and reading.done < reading.total else None,
    }  # fmt: skip


def _recorded(study: Study) -> Iterable[RunStatus]:
    for arm in study.arms:
        for seed in study.seeds_of(arm):
            record = study.cells.get((arm, seed))
            state = {"complete": "finished", "failed": "failed"}.get(record.status, "missing") if record else "missing"
            yield RunStatus(arm=arm, seed=seed, state=state, reason=record.reason if record else None)


def charts(metric: str, others: Sequence[str]) -> list[dict[str, str]]:
    """The charts of curves, each by its name in an arm's section: the primary metric, the training loss, other metrics."""
    loss = {"name": "loss", "label": "training NELBO", "unit": "nats/token"}
    first, *more = (
        {"name": name, "label": METRICS[name].label, "unit": METRICS[name].unit} for name in (metric, *others)
    )
    return [first | {"name": "validation"}, loss, *more]


def verdict(study: Study) -> dict[str, Any]:
    """Anytime-valid verdict of the runs so far."""
    if study.design.ladder is not None or len(study.arms) == 1:
        return {"headline": judge(study, brief=True).headline, "families": [], "notes": list(notes(study))}
    found = running(study)
    families = [("arm", found.against_control), ("planned contrast", found.contrasts)]
    shown = found.table
    return {
        "headline": found.headline, "label": shown.label, "unit": shown.unit, "goal": shown.goal, "alpha": found.alpha,
        "margin": shown.margin, "looked": found.looked,
        "notes": [*filter(None, [optional_stopping(study)]), *notes(study)],
        "families": [{"name": name, "rows": [_row(row) for row in rows]} for name, rows in families if rows],
    }  # fmt: skip


def _row(row: Comparison) -> dict[str, Any]:
    return asdict(row) | {"arms": list(row.arms), "notes": list(row.notes)}


def failures(found: StudyStatus[Any] | None, study: Study | None) -> dict[str, Any]:
    """Failed and lost runs by reason, and damaged records."""
    rows: list[Row] = list(found.of("failed", "lost")) if found else []
    known = {row.label for row in rows}
    labels = study.labels if study is not None else {}
    if study is not None:
        running_again = {row.label for row in found.of("queued", "running")} if found else set()
        rows += [
            row
            for row in _recorded(study)
            if row.state == "failed" and row.label not in known and row.label not in running_again
        ]
    return {
        "reasons": [
            {
                "state": same[0].state,
                "reason": reason,
                "count": len(same),
                "runs": [named(row, labels) for row in same[:MOST_RUNS]],
            }
            for reason, same in by_reason(rows)
        ],
        "unreadable": list(study.unreadable) if study else [],
        "set_aside": dict(study.set_aside) if study else {},
    }


def named(row: Row, labels: Mapping[str, str]) -> str:
    """A run by its arm's label; a configuration by its trial."""
    return f"{labels.get(row.arm, row.arm)}, seed {row.seed}" if isinstance(row, RunStatus) else row.label


def workers(rows: Sequence[Mapping[str, Any]], labels: Mapping[str, str]) -> list[dict[str, Any]]:
    """Workers and the runs that they train. rows: "status", "progress" and "rate" (tokens a second) of each run in training.
    labels: of arms."""
    return [
        {
            "where": row["status"].where, "label": named(row["status"], labels), "step": row["status"].step,
            "steps": row["status"].steps, "seconds_left": row["status"].seconds_left, "rate": row["rate"],
            "loss": row["progress"].get("loss"), "seen": round(row["progress"]["updated"]) if row["progress"] else None,
        }
        for row in rows
    ]  # fmt: skip


def search(found: SearchStatus, design: SearchDesign) -> dict[str, Any]:
    """A search's trials by value, the best of each group so far, and whether Optuna's own dashboard is shown beside them."""
    from sweeps.search.plan import described  # imports torch, which takes seconds

    sign = 1 if design.goals[0] == "min" else -1
    told = [row for row in found.configurations if row.value is not None]
    best: dict[str, ConfigurationStatus] = {}
    for row in told:
        if row.state == "finished" and (row.group not in best or sign * row.value < sign * best[row.group].value):  # type: ignore[operator]
            best[row.group] = row
    return {
        "values": [[row.trial, row.value, row.state, row.label] for row in told],
        "best": [
            {"group": group, "label": row.label, "value": row.value, "settings": described(row.settings)}
            for group, row in sorted(best.items())
        ],
        "objectives": len(design.metrics), "undrawn": found.undrawn, "tokens": found.tokens,
        "budget_tokens": found.budget_tokens, "over": found.over,
        "confirmation": None if found.confirmation is None else {s: n for s, n in found.confirmation.counts.items() if n},
        "beside": installed() or MISSING,
    }  # fmt: skip


OF_KIND: Mapping[str, Mapping[str, Callable[[Any, Any], dict[str, Any]]]] = {"search": {"search": search}}
"""Sections of one kind of study alone, by the kind and their name: from its status and its design."""


def rate(before: Mapping[str, Any] | None, now: Mapping[str, Any]) -> float | None:
    """Tokens a second of a run in training: between two looks, else since it was started."""
    if not now.get("step") or not now.get("tokens_per_step"):
        return None
    if before and before.get("step") and now["updated"] > before["updated"] and now["step"] > before["step"]:
        steps, seconds = now["step"] - before["step"], now["updated"] - before["updated"]
    else:
        steps, seconds = now["step"], now["updated"] - now["started"]
    return float(steps * now["tokens_per_step"] / seconds) if seconds > 0 else None
