"""What buying seeds until a sweep is decided saves, and the error rates that it keeps, simulated from recorded studies.

    python -m tests.benchmarks.adaptive [--repeats 400]

tests/benchmarks/data/blocks.json holds real small runs (record_blocks.py): three questions, every arm under many seeds. A
simulated study draws its seeds from a normal distribution with the recorded means and the recorded covariance of arms within
seeds, or, to see what normality does, from the recorded seeds themselves with a little of that noise. Both designs see the
same draws. The fixed one has the seeds that it takes to detect the margin with 80 % power in the question's typical arm, and
takes Holm over paired t tests; the adaptive one stands for it, and takes what it buys.

power: true differences found, of those that are there (all recorded differences are taken as true). FWER: studies in which
anything is found although all arms are moved to the control's mean.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from analysis.adaptive import Rule, course
from analysis.compare import versus_control
from analysis.frame import Study
from analysis.power import seeds_needed
from analysis.tables import metric_table
from core.records import RunRecord

DATA = Path(__file__).parent / "data" / "blocks.json"
REPEATS = 400
MARGIN = 0.02  # nats per token


def studies() -> dict[str, np.ndarray]:
    """Recorded values (S, A) by question, the control first."""
    content = json.loads(DATA.read_text(encoding="utf-8"))
    return {question: np.array(rows, dtype=float) for question, rows in content["nelbo"].items()}


def draw(
    scores_SA: np.ndarray, seeds: int, rng: np.random.Generator, *, null: bool, smooth: bool = False
) -> np.ndarray:
    """A simulated study (seeds, A). smooth: recorded seeds with a fifth of their variance added as normal noise."""
    means = scores_SA.mean(0)
    residual_SA = scores_SA - means
    if smooth:
        chosen = residual_SA[rng.integers(0, len(residual_SA), seeds)]
        jitter = rng.multivariate_normal(np.zeros(len(means)), np.cov(residual_SA.T), seeds)
        noise = (chosen + np.sqrt(0.2) * jitter) / np.sqrt(1.2)
    else:
        noise = rng.multivariate_normal(np.zeros(len(means)), np.cov(residual_SA.T), seeds)
    return noise + (means[0] if null else means)


def as_study(scores_SA: np.ndarray, rule: Rule, margin: float | None = MARGIN) -> Study:
    """Scores as an adaptive study whose runs are all recorded."""
    names = [f"arm{place}" for place in range(scores_SA.shape[1])]
    arms = [{"name": name, "label": name, "hash": name, "notes": []} for name in names]
    design = {"metric": "val/nelbo", "margin": margin, "alpha": 0.05, "control": names[0], "arms": arms}
    design = rule.designed(design | {"seeds": list(range(rule.fixed))}, dict.fromkeys(names, rule.most))
    cells = {
        (name, seed): RunRecord(
            status="complete", run_hash="", arm_hash=name, seed=seed, config={}, metrics={"val/nelbo": float(value)}
        )
        for seed, row in enumerate(scores_SA)
        for name, value in zip(names, row, strict=True)
    }
    return Study(design, cells, {}, ())


def contest(scores_SA: np.ndarray, rule: Rule, margin: float | None = MARGIN) -> dict[str, float]:
    """Both designs on one simulated study: comparisons that found a difference, and runs."""
    study = as_study(scores_SA, rule, margin)
    found = course(study)
    table = metric_table(study, "val/nelbo", primary=True, looks=found.looks_of)
    said = [row.verdict for row in table.rows[1:]]
    return {
        "fixed": float((versus_control(scores_SA[: rule.fixed]) < 0.05).sum()),
        "adaptive": float(sum(words.startswith(("better", "worse")) for words in said)),
        "fixed_runs": float(found.fixed_runs),
        "adaptive_runs": float(found.runs),
    }


def fixed_seeds(scores_SA: np.ndarray, margin: float = MARGIN) -> int:
    """Seeds at which paired t tests detect the margin with 80 % power, Holm-adjusted, at the median arm's noise."""
    sd = float(np.median((scores_SA[:, 1:] - scores_SA[:, :1]).std(0, ddof=1)))
    return seeds_needed(margin / sd, comparisons=scores_SA.shape[1] - 1)


def measure(repeats: int = REPEATS) -> list[dict[str, Any]]:
    """By question: power, family-wise error rates and runs of both designs."""
    draws: dict[str, dict[str, bool]] = {
        "planted": {"null": False}, "null": {"null": True}, "null_recorded": {"null": True, "smooth": True}
    }  # fmt: skip
    return [_row(question, scores_SA, draws, repeats) for question, scores_SA in studies().items()]


def _row(question: str, scores_SA: np.ndarray, draws: dict[str, dict[str, bool]], repeats: int) -> dict[str, Any]:
    rule, rng = Rule.of(fixed_seeds(scores_SA)), np.random.default_rng(0)
    found = {
        name: [contest(draw(scores_SA, rule.most, rng, **options), rule) for _ in range(repeats)]
        for name, options in draws.items()
    }

    def mean(name: str, key: str) -> float:
        return float(np.mean([row[key] for row in found[name]]))

    row: dict[str, Any] = {"question": question, "arms": scores_SA.shape[1], "seeds": rule.fixed, "repeats": repeats}
    for design in ("fixed", "adaptive"):
        row[f"power_{design}"] = mean("planted", design) / (scores_SA.shape[1] - 1)
        for name in ("null", "null_recorded"):
            row[f"fwer_{name}_{design}"] = float(np.mean([each[design] > 0 for each in found[name]]))
    row["runs_fixed"], row["runs_adaptive"] = mean("planted", "fixed_runs"), mean("planted", "adaptive_runs")
    row["runs_adaptive_null"] = mean("null", "adaptive_runs")
    return row


def table(rows: list[dict[str, Any]]) -> list[str]:
    """The result as Markdown."""
    lines = [
        f"bought until decided beside the fixed design, {rows[0]['repeats']} simulated studies each",
        "",
        "| question | arms x seeds | runs bought | fixed / bought | power, fixed | bought | FWER, fixed | bought | "
        "recorded residuals |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(
            f"| {row['question']} | {row['arms']} x {row['seeds']} | {row['runs_adaptive']:.0f} | "
            f"{row['runs_fixed'] / row['runs_adaptive']:.2f} | {row['power_fixed']:.2f} | {row['power_adaptive']:.2f} | "
            f"{row['fwer_null_fixed']:.3f} | {row['fwer_null_adaptive']:.3f} | {row['fwer_null_recorded_adaptive']:.3f} |"
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.adaptive", description=__doc__)
    parser.add_argument("--repeats", type=int, default=REPEATS)
    print("\n".join(table(measure(parser.parse_args().repeats))))


if __name__ == "__main__":
    main()
