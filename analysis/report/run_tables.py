"""A report's tables of single things: every run, every arm, the scale, and where the runs came from."""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from analysis.study import Study
from analysis.verdicts.comparisons import MetricTable
from core.config.loading import flatten
from core.records.run_record import RunRecord
from core.runtime.units import short

MISSING = object()
MANY = 8  # values of one fact that a page lists


def runs(study: Study) -> list[dict[str, Any]]:
    """A row for each run of the design, trained or not, with what its config has otherwise than the control's of its seed."""
    rows = []
    for arm in study.arms:
        for seed in study.seeds_of(arm):
            record = study.cells.get((arm, seed))
            row: dict[str, Any] = {"arm": study.labels[arm], "seed": seed, "hash": ""}
            row |= {"status": "missing", "reason": "not recorded", "differs": []}
            if record is not None:
                row |= {"status": record.status, "reason": record.reason or "", "hash": record.run_hash}
                row |= {"value": record.metrics.get(study.design.metric), "where": record.provenance.get("host", "")}
                row |= {"wall_time_s": record.wall_time_s, "rate": record.tokens_per_second}
                row["differs"] = differences(study, arm, record)
            rows.append(row)
    return rows


def arms(study: Study, tables: tuple[MetricTable, ...]) -> list[dict[str, Any]]:
    """A row for each arm: its size, its runs, its mean and standard deviation over seeds in every metric, its config."""
    rows = []
    for entry in study.design.arms:
        own = study.records_of(entry.name)
        row: dict[str, Any] = {"label": entry.label, "parameters": entry.parameters}
        row |= {"flops": short(entry.flops_per_token), "complete": sum(r.status == "complete" for r in own)}
        row |= {"failed": sum(r.status == "failed" for r in own), "wanted": len(study.seeds_of(entry.name))}
        row["alarms"] = sorted({alarm["kind"] for record in own for alarm in record.alarms})
        row["values"] = [next(r for r in table.rows if r.arm == entry.name) for table in tables]
        row["differs"] = differences(study, entry.name, own[0]) if own else []
        rows.append(row)
    return rows


def differences(study: Study, arm: str, record: RunRecord) -> list[tuple[str, str, str]]:
    """Differences of a run's config from the control's: (dotted key, the control's value, the run's).

    Of the control's run of the same seed where there is one; the seed itself never counts.
    """
    control: str = study.design.control
    if arm == control:
        return []
    base = study.cells.get((control, record.seed)) or next(iter(study.records_of(control)), None)
    if base is None:
        return []
    return list(_unlike(*(dict(flatten(_other(*pair))) for pair in ((base, record), (record, base)))))


def _other(own: RunRecord, than: RunRecord) -> dict[str, Any]:
    """The sections of a run's config that another's has otherwise or not at all."""
    return {name: part for name, part in own.config.items() if than.config.get(name, MISSING) != part}


def _unlike(base: Mapping[str, Any], own: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    for key in dict.fromkeys([*base, *own]):
        if key != "seed" and base.get(key, MISSING) != own.get(key, MISSING):
            yield key, str(base.get(key, "unset")), str(own.get(key, "unset"))


def scale(study: Study, finished: list[RunRecord]) -> dict[str, Any] | None:
    """Scale for which the answer holds: parameters, tokens, corpus and compute; None where nothing has finished, and of runs
    whose logs don't tell."""
    if not finished or study.design.logs is not None:
        return None
    tokens = [round(record.tokens) for record in finished]
    total = [arm.parameters.total for arm in study.design.arms]
    active = [arm.parameters.active for arm in study.design.arms]
    return {
        "total": _range(total),
        "active": _range(active),
        "tokens": _range(tokens),
        "corpus": finished[0].config["data"]["corpus"],
        "flops": f"{sum(record.flops for record in finished):.2g}",
        "hours": f"{sum(record.spent['wall_time_s'] for record in finished) / 3600:.2g}",
    }


def _range(values: list[int]) -> str:
    low, high = min(values), max(values)
    return f"{low:,}" if low == high else f"{low:,} – {high:,}"


def provenance(finished: list[RunRecord]) -> Mapping[str, list[str]]:
    """Everything the runs say of where they came from, each value with how many runs say it."""
    seen: dict[str, Counter[str]] = {}
    for record in finished:
        facts = {k: v for k, v in record.provenance.items() if k != "packages"}
        facts |= record.provenance.get("packages", {}) | {"data fingerprint": record.data_fingerprint}
        for key, value in facts.items():
            seen.setdefault(key, Counter())[str(value)] += 1
    many = len(finished)
    return {
        key: [f"{len(counts)} different ones, each in its run's record"]
        if len(counts) > MANY
        else [value if n == many else f"{value} ({n} of {many} runs)" for value, n in sorted(counts.items())]
        for key, counts in seen.items()
    }
