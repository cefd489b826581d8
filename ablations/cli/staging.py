"""`ablate train` of a file that has stages: one run after the other."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ablations.cli.train import ConsoleLogger, tracker_of
from core.config.loading import parse_overrides
from core.config.stages import Stage, load_stages
from core.data.corpora import describe
from core.errors import UserError
from core.records.provenance import save_diff
from core.records.record import RunRecord
from core.runtime.printable import say
from core.runtime.ranks import Ranks
from core.training import preemption as pausing
from core.training.checkpoint_files import saved_step
from core.training.loggers import RowLogger
from core.training.staged import Turn, handed_on, train_stages
from sweeps.tracking.wandb_run import WandbTracker


class Console:
    """Says where each stage stands, and mirrors it to W&B as a run of its own."""

    def __init__(self, stages: Sequence[Stage], out: Path) -> None:
        self.stages, self.out = stages, out
        self._tracker: WandbTracker | None = None

    def begins(self, turn: Turn) -> Sequence[RowLogger]:
        place = f"stage {turn.number}/{len(self.stages)}, {turn.stage.name}"
        if turn.record is not None:
            say(f"{place}: done ({turn.folder})")
            return ()
        source = turn.started_from
        after = f", from {source['stage']} after step {source['step']}" if source else ""
        goes_on = saved_step(turn.folder)
        say(f"{place}{after}{f', going on from step {goes_on}' if goes_on is not None else ''}")
        say("\n".join(describe([turn.config.data])))
        save_diff(self.out)
        self._tracker = tracker_of(turn.config, turn.folder)
        return [ConsoleLogger(turn.config.trainer.steps), self._tracker]

    def ended(self, turn: Turn, record: RunRecord) -> None:
        assert self._tracker is not None
        self._tracker.finish(record)
        say(f"record: {turn.folder / 'record.json'}")
        for note in record.notes:
            say(f"note: {note}")


def run_stages(arguments: argparse.Namespace) -> int:
    """Train the stages that aren't done, up to the one that --stage names; or with --dry-run only check them."""
    stages = load_stages(Path(arguments.config), parse_overrides(arguments.settings))
    ranks = Ranks.of_environment()
    if arguments.stage is not None:
        names = [stage.name for stage in stages]
        if arguments.stage not in names:
            raise UserError(f"--stage {arguments.stage}: the stages of {arguments.config} are {', '.join(names)}")
        stages = stages[: names.index(arguments.stage) + 1]
    if arguments.dry_run:
        from ablations.cli.dry_run import run_dry_stages

        return run_dry_stages(stages, arguments)
    if ranks.size > 1 and arguments.stage is None:
        raise UserError("processes that srun or torchrun started together train one stage: name it with --stage")
    ranks = replace(ranks, expert_parallel=stages[-1].config.deepspeed.expert_parallel)
    watcher = Console(stages, arguments.out) if ranks.rank == 0 else None
    with pausing.on_signals():
        turn, record = train_stages(stages, arguments.out, devices=arguments.devices, watcher=watcher, ranks=ranks)[-1]
    if record.status != "complete":
        say(f"ablate: stage {turn.stage.name} failed: {record.reason}", file=sys.stderr)
        return 1
    if ranks.rank == 0:
        say(f"weights: {handed_on(turn, record)[0]}")
    return 0
