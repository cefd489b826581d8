"""A sweep on its way: really planned and in a real ledger, with records and progress whose numbers are made up."""

import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from core.records import run_record
from core.records.run_record import RunRecord
from sweeps.runs.folders import run_folder, write_design
from sweeps.runs.ledger import Ledger, RunClaim
from sweeps.runs.progress import ProgressLogger, curve_metrics
from sweeps.runs.trials import failed_record
from sweeps.spec import Factor
from sweeps.storage.storage import default_url, open_storage
from sweeps.studies.plan import Plan, PlannedRun
from sweeps.studies.resolve import plan
from tests.sweeps.conftest import declare

WEIGHTS = (0.01, 0.0, 0.001)  # the control's first
EFFECT = {0.01: 0.0, 0.0: 0.3, 0.001: -0.02}
STEPS = (5, 10, 15, 20, 25, 30)


def value_of(run: PlannedRun, noise: float = 0.02) -> float:
    """The made-up NELBO of a run: of its seed, its arm and a little of itself."""
    weight = run.config.objective.load_balancing_weight
    own = np.random.default_rng((run.seed, WEIGHTS.index(weight))).normal(0, noise)
    return float(3.0 + 0.2 * math.sin(run.seed) + EFFECT[weight] + own)


def losses_of(run: PlannedRun) -> list[float]:
    """Its training loss at STEPS."""
    return [value_of(run) + 2 * math.exp(-step / 8) for step in STEPS]


def record_of(planned: Plan, run: PlannedRun, second: int = 0) -> RunRecord:
    """The record of a run that finished."""
    tokens = [step * run.config.tokens_per_step for step in STEPS]
    losses = losses_of(run)
    blank = failed_record(planned, run, "")
    return replace(
        blank, status="complete", reason=None, metrics={"val/nelbo": value_of(run)},
        curve={"step": list(STEPS), "tokens": tokens, "train/nelbo": losses, "train/loss": losses},
        validation={"step": list(STEPS), "tokens": tokens, "val/nelbo": [*losses[:-1], value_of(run)],
                    "load/max_vio": [0.5] * len(STEPS)},
        finished_at=f"2026-01-01T00:{second // 60:02d}:{second % 60:02d}+00:00",
    )  # fmt: skip


@dataclass
class Sweep:
    """A plan in a folder of runs with its ledger."""

    planned: Plan
    out: Path
    ledger: Ledger
    ended: int = 0

    @property
    def folder(self) -> Path:
        return self.out / self.planned.study_name

    def finish(self, count: int = 1, reason: str | None = None) -> None:
        """Train the next runs, to their end or to a failure."""
        for _ in range(count):
            claim = self.claim()
            self.ended += 1
            record = record_of(self.planned, claim.run, self.ended)
            if reason is not None:
                record = failed_record(self.planned, claim.run, reason)
            run_record.write(record, claim.folder)
            self.ledger.finish(claim, record, {})

    def claim(self) -> RunClaim:
        """Take the next run as a worker does."""
        claim = self.ledger.claim()[0]
        assert claim is not None
        return claim

    def train(self, steps: int = 3) -> RunClaim:
        """Begin the next run, and come so many rows far."""
        claim = self.claim()
        config = claim.run.config
        logger = ProgressLogger(
            claim.folder,
            config.trainer.steps,
            tokens_per_step=config.tokens_per_step,
            keep=curve_metrics(self.planned.design),
        )
        for step, loss in list(zip(STEPS, losses_of(claim.run), strict=True))[:steps]:
            logger._written = 0.0  # at most once a second otherwise
            logger.log_metrics({"train/nelbo": loss, "val/nelbo": loss}, step)
        return claim


def begin(out: Path, seeds: int = 8) -> Sweep:
    """Queue three arms under so many seeds."""
    factor = Factor("objective.load_balancing_weight", WEIGHTS)
    planned = plan("toy", declare(factors=(factor,), seeds=range(seeds), margin=0.1))
    write_design(out / planned.study_name, planned.design)
    ledger = Ledger(planned, out, open_storage(default_url(out)))
    ledger.reconcile()
    return Sweep(planned, out, ledger)


def path_of(sweep: Sweep, run: PlannedRun) -> Path:
    """Where a run's record lies."""
    return run_folder(sweep.planned, run, sweep.out) / run_record.FILE_NAME
