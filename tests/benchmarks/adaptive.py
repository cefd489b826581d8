"""Savings and error rates of sequential designs, simulated from recorded studies.

    python -m tests.benchmarks.adaptive [--repeats 200]

Recorded are real small runs: three questions, every arm under ten seeds (blocks.json, by record_blocks.py), and as a fourth a
recipe, of which 48 settings of learning rate, load balancing and top-k were trained under two seeds each (curves.json,
by record_curves.py; its noise is pooled over settings). A simulated study draws its seeds from a normal distribution with
the recorded means and the recorded covariance of arms within seeds, or, to see what normality does, from the recorded
residuals themselves with a little of that noise. Both designs see the same draws. The fixed one has the seeds that it takes
to detect the margin with 80 % power at the median arm's noise, and takes Holm over paired t tests; the adaptive one has the
same seeds at most, and takes what it buys.

power: true differences found, of those that are there (all recorded differences are taken as true). FWER: studies in which
anything is found although all arms are moved to the control's mean.
"""

import argparse
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from analysis.statistics.compare import holm
from analysis.statistics.power import seeds_needed
from analysis.study import Study
from analysis.verdicts.comparisons import metric_table
from analysis.verdicts.until_decided import Rule, sequential_run
from core.records.designs import Design
from core.records.run_record import RunRecord
from tests.analysis.conftest import make_design
from tests.benchmarks.record_blocks import DATA as BLOCKS
from tests.benchmarks.record_curves import DATA as CURVES

REPEATS = 200
MARGIN = 0.03  # nats per token


@dataclass(frozen=True)
class Recorded:
    """A study's recorded means (A,), the control first, and residuals within seeds: (S, A), or (R,) of any arm."""

    means: np.ndarray
    residuals: np.ndarray

    @property
    def covariance(self) -> np.ndarray:
        if self.residuals.ndim == 2:
            return np.cov(self.residuals.T)
        return float(self.residuals.var()) * np.eye(len(self.means))

    @property
    def fixed_seeds(self) -> int:
        """Seeds at which paired t tests detect the margin with 80 % power, Holm-adjusted, at the median arm's noise."""
        cov = self.covariance
        sd = float(np.median(np.sqrt(np.diag(cov)[1:] + cov[0, 0] - 2 * cov[0, 1:])))
        return seeds_needed(MARGIN / sd, comparisons=len(self.means) - 1)

    def draw(self, seeds: int, rng: np.random.Generator, *, null: bool, recorded: bool = False) -> np.ndarray:
        """A simulated study (seeds, A). null: all arms at the control's mean. recorded: of recorded residuals, a sixth of
        whose variance is replaced by normal noise."""
        noise = rng.multivariate_normal(np.zeros(len(self.means)), self.covariance, seeds)
        if recorded:
            shape = seeds if self.residuals.ndim == 2 else noise.shape
            chosen = self.residuals[rng.integers(0, len(self.residuals), shape)]
            noise = (chosen + np.sqrt(0.2) * noise) / np.sqrt(1.2)
        return noise + (self.means[0] if null else self.means)


def studies() -> dict[str, Recorded]:
    """What was recorded, by question."""
    found = {}
    for question, rows in json.loads(BLOCKS.read_text(encoding="utf-8"))["nelbo"].items():
        scores_SA = np.array(rows, dtype=float)
        found[question] = Recorded(scores_SA.mean(0), scores_SA - scores_SA.mean(0))
    content = json.loads(CURVES.read_text(encoding="utf-8"))
    last = np.array([np.nan if row is None or row[-1] is None else row[-1] for row in content["nelbo"]], dtype=float)
    grid = last.reshape(*map(len, content["grid"].values()), len(content["seeds"]))[:, :, 0, :, :]  # no z-loss
    residuals = grid - grid.mean(-1, keepdims=True)
    within = (residuals - np.nanmean(residuals, axis=(0, 1, 2))) * np.sqrt(2)  # of two seeds, one degree of freedom
    means, control = grid.mean(-1), (2, 1, 1)  # learning rate 3e-3, load balancing 0.01, top-2
    others = np.delete(means.ravel(), np.ravel_multi_index(control, means.shape))
    kept = np.concatenate([[means[control]], others[np.isfinite(others)]])
    found["recipe"] = Recorded(kept, within[np.isfinite(within)])
    return found


def as_study(scores_SA: np.ndarray, rule: Rule, margin: float | None = MARGIN) -> Study:
    """Scores as an adaptive study whose runs are all recorded."""
    seeds, arms = scores_SA.shape
    design = Design.from_json(make_design(arms, seeds, margin=margin, secondary=[], factors=[]))
    names = [arm.name for arm in design.arms]
    design = rule.designed(design, dict.fromkeys(names, rule.fixed))
    cells = {
        (name, seed): RunRecord(
            status="complete",
            run_hash="",
            arm_hash=f"hash-{name}",
            seed=seed,
            config={},
            metrics={"val/nelbo": float(value)},
        )
        for seed, row in enumerate(scores_SA)
        for name, value in zip(names, row, strict=True)
    }
    return Study(design, cells, {}, ())


def contest(scores_SA: np.ndarray, rule: Rule, margin: float | None = MARGIN) -> dict[str, float]:
    """Both designs on one simulated study: comparisons that found a difference, and runs."""
    study = as_study(scores_SA, rule, margin)
    found = sequential_run(study)
    table = metric_table(study, "val/nelbo", primary=True, looks=found.looks_of)
    said = [row.verdict for row in table.rows[1:]]
    return {
        "fixed": float((holm(stats.ttest_1samp(scores_SA[:, 1:] - scores_SA[:, :1], 0.0).pvalue) < 0.05).sum()),
        "adaptive": float(sum(words.startswith(("better", "worse")) for words in said)),
        "fixed_runs": float(found.fixed_runs),
        "adaptive_runs": float(found.runs),
    }


def measure(repeats: int = REPEATS) -> list[dict[str, Any]]:
    """By question: power, family-wise error rates and runs of both designs."""
    return [_row(question, recorded, repeats) for question, recorded in studies().items()]


def _row(question: str, recorded: Recorded, repeats: int) -> dict[str, Any]:
    rule, rng = Rule.of(recorded.fixed_seeds), np.random.default_rng(0)
    draws = {"planted": (False, False), "null": (True, False), "null_recorded": (True, True)}
    found = {
        name: [contest(recorded.draw(rule.fixed, rng, null=null, recorded=own), rule) for _ in range(repeats)]
        for name, (null, own) in draws.items()
    }

    def mean(name: str, key: str) -> float:
        return float(np.mean([row[key] for row in found[name]]))

    arms = len(recorded.means)
    row: dict[str, Any] = {"question": question, "arms": arms, "seeds": rule.fixed, "repeats": repeats}
    for design in ("fixed", "adaptive"):
        row[f"power_{design}"] = mean("planted", design) / (arms - 1)
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
        "recorded residuals, fixed | bought |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(
            f"| {row['question']} | {row['arms']} x {row['seeds']} | {row['runs_adaptive']:.0f} | "
            f"{row['runs_fixed'] / row['runs_adaptive']:.2f} | {row['power_fixed']:.2f} | {row['power_adaptive']:.2f} | "
            f"{row['fwer_null_fixed']:.3f} | {row['fwer_null_adaptive']:.3f} | "
            f"{row['fwer_null_recorded_fixed']:.3f} | {row['fwer_null_recorded_adaptive']:.3f} |"
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.adaptive", description=__doc__)
    parser.add_argument("--repeats", type=int, default=REPEATS)
    print("\n".join(table(measure(parser.parse_args().repeats))))


if __name__ == "__main__":
    main()
