"""`ablate train`: one run from a config file or a preset; or several, where the file has stages."""

import argparse
import itertools
import shlex
import sys
import time
import uuid
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ablations.cli.terminal import console
from core.capacity.clusters import Cluster
from core.capacity.layouts import Layout
from core.capacity.planning import plan
from core.config.loading import parse_overrides
from core.config.presets import resolve
from core.config.run import RunConfig, config_hash
from core.config.stages import Stage, is_staged, load_stages
from core.data.corpora import describe
from core.data.inputs import fingerprint
from core.errors import UserError
from core.records.designs import StudyDesign
from core.records.metrics import RowLogger
from core.records.provenance import save_diff
from core.records.run_record import FILE_NAME, RunRecord, UnreadableRecordError, read, set_aside
from core.runtime.printable import say
from core.runtime.ranks import Ranks
from core.runtime.units import counted, short
from core.training import preemption
from core.training.checkpoint_files import saved_step
from core.training.checks import check, check_stages
from core.training.dry_run import DryRun, dry_run
from core.training.staged import Turn, Watcher, handed_on, train_stages
from sweeps.export.arm import CONFIG
from sweeps.runs.progress import CLOCK, Pace
from sweeps.studies.plan import PlannedRun, Sweep
from sweeps.tracking.wandb_run import WandbTracker, run_id

DONE = "nothing was trained; every check passed"
REPEATED = 4  # epochs up to which repeated text is worth almost as much as new text (arXiv 2305.16264)


class ConsoleLogger:
    """One plain line per logged row: the time, the step, its metrics, and the time left."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self._pace = Pace(steps)

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        names = ("train/nelbo", "val/nelbo", "val/bits_per_byte", "load/max_vio")
        shown = "  ".join(f"{name} {metrics[name]:.4f}" for name in names if name in metrics)
        left = self._pace.left(step) if step is not None else ""
        say(f"{time.strftime(CLOCK)} step {step}/{self.steps}  {shown}{left}")


def run_train(arguments: argparse.Namespace) -> int:
    """Train one run and say where its record lies; as one rank of several where torchrun, srun or deepspeed started it."""
    if is_staged(Path(arguments.config)):
        return run_stages(arguments)
    if arguments.stage is not None:
        raise UserError(f"--stage {arguments.stage}: {arguments.config} has no stages")
    config = resolve(exported(arguments.config), parse_overrides(arguments.settings))
    if arguments.dry_run:
        return _dry_run(config, arguments)
    if arguments.cluster:
        raise UserError("--cluster is an option of --dry-run: add that, or leave it out")
    spread = config.trainer.strategy == "deepspeed"
    ranks = Ranks.of_environment(config.deepspeed.expert_parallel) if spread else Ranks()
    if ranks.size > 1 and arguments.devices not in (1, ranks.size):
        raise UserError(f"--devices {arguments.devices}, but {ranks.size} processes were started: leave --devices out")
    check(config, max(ranks.size, arguments.devices))
    folder = _folder(arguments.out / "train" / config_hash(config), first=ranks.rank == 0)
    from core.training.run import train  # torch and Lightning, which mistakes are refused without

    if ranks.rank > 0:
        with preemption.on_signals():
            return int(train(config, folder).status != "complete")
    say("\n".join(describe([config.data])))
    save_diff(arguments.out)
    tracker = tracker_of(config, folder)
    loggers: list[RowLogger] = [ConsoleLogger(config.trainer.steps), tracker]
    with preemption.on_signals():
        record = train(config, folder, loggers=loggers, devices=arguments.devices)
    tracker.finish(record)
    say(f"record: {folder / 'record.json'}")
    for note in record.notes:
        say(f"note: {note}")
    if record.status == "failed":
        say(f"ablate: the run failed: {record.reason}", file=sys.stderr)
        return 1
    say(f"train it further or elsewhere: ablate train {shlex.quote(str(folder / 'config.yaml'))}")
    return 0


def exported(name: str) -> str:
    """The config of an exported folder; any other name as it is."""
    path = Path(name) / CONFIG
    return str(path) if path.is_file() else name


def _folder(folder: Path, *, first: bool) -> Path:
    """The folder, or one beside it: a record that is there is never written over.

    A failed run with a checkpoint is gone on with, its record set aside by the first rank.
    """
    candidates = (folder if n == 1 else folder.with_name(f"{folder.name}-{n}") for n in itertools.count(1))
    for candidate in candidates:
        latest = saved_step(candidate)
        if not (candidate / FILE_NAME).exists():
            break
        if latest is not None and _has_failed(candidate):
            if first:
                set_aside(candidate)
            break
    if first and latest is not None:
        say(f"going on from the checkpoint of step {latest}")
    return candidate


def _has_failed(folder: Path) -> bool:
    """True if the run in a folder failed, or left a record that can't be read."""
    try:
        return read(folder / FILE_NAME).status == "failed"
    except UnreadableRecordError:
        return True


def tracker_of(config: RunConfig, folder: Path) -> WandbTracker:
    """W&B shows a single run as a sweep of one."""
    run = PlannedRun(
        arm="single",
        settings={},
        config=config,
        run_hash=config_hash(config),
        arm_hash=config_hash(config, with_seed=False),
        fingerprint=fingerprint(config),
    )
    design = StudyDesign(
        kind="train", ablation="train", size="full", question="", control="", seeds=(config.seed,), secondary=(),
        data_fingerprint=run.fingerprint, overrides=(), devices=1,
    )  # fmt: skip
    sweep = Sweep(name="train", size="full", design=design, runs=(run,))
    return WandbTracker(sweep, run, folder, run_id(run, uuid.uuid4().hex, 0))


class StageConsole(Watcher):
    """Prints where each stage stands, and mirrors it to W&B as a run of its own."""

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
    """Train the stages that aren't done, up to the one that --stage names; with --dry-run only check them."""
    stages = load_stages(Path(arguments.config), parse_overrides(arguments.settings))
    ranks = Ranks.of_environment()
    if arguments.stage is not None:
        names = [stage.name for stage in stages]
        if arguments.stage not in names:
            raise UserError(f"--stage {arguments.stage}: the stages of {arguments.config} are {', '.join(names)}")
        stages = stages[: names.index(arguments.stage) + 1]
    if arguments.dry_run:
        return _dry_run_stages(stages, arguments)
    if ranks.size > 1 and arguments.stage is None:
        raise UserError("processes that srun or torchrun started together train one stage: name it with --stage")
    ranks = replace(ranks, expert_parallel=stages[-1].config.deepspeed.expert_parallel)
    watcher = StageConsole(stages, arguments.out) if ranks.rank == 0 else None
    with preemption.on_signals():
        turn, record = train_stages(stages, arguments.out, devices=arguments.devices, watcher=watcher, ranks=ranks)[-1]
    if record.status != "complete":
        say(f"ablate: stage {turn.stage.name} failed: {record.reason}", file=sys.stderr)
        return 1
    if ranks.rank == 0:
        say(f"weights: {handed_on(turn, record)[0]}")
    return 0


def _dry_run(config: RunConfig, arguments: argparse.Namespace) -> int:
    _print_lines([*_checked(config, arguments), DONE])
    return 0


def _dry_run_stages(stages: Sequence[Stage], arguments: argparse.Namespace) -> int:
    cluster = Cluster.parse(arguments.cluster) if arguments.cluster else None
    check_stages(stages, cluster.devices if cluster else arguments.devices, here=False)
    for number, stage in enumerate(stages, start=1):
        try:
            lines = _checked(stage.config, arguments)
        except UserError as error:
            raise UserError(f"stage {stage.name}: {error}") from None
        _print_lines(
            [f"stage {number}/{len(stages)}, {stage.name}; hands on by {stage.select}", *(f"  {x}" for x in lines)]
        )
    _print_lines([DONE])
    return 0


def _checked(config: RunConfig, arguments: argparse.Namespace) -> list[str]:
    devices, layout = _on_cluster(config, arguments) if arguments.cluster else (arguments.devices, [])
    return [*_lines(config, dry_run(config, devices), devices), *layout]


def _print_lines(lines: Sequence[str]) -> None:
    out = console()
    for line in lines:
        out.unwrapped(line)


def _lines(config: RunConfig, found: DryRun, devices: int) -> list[str]:
    trainer, spread, data = config.trainer, config.deepspeed, config.data
    shapes = "; ".join(f"{name} {' x '.join(map(str, shape))}" for name, shape in found.shapes.items())
    rates = ", ".join(f"{rate:.3g} at {step}" for step, rate in found.learning_rates)
    lines = [
        f"model: {found.size.total:,} parameters, {found.size.active:,} active a token",
        f"shapes of a micro-batch of {found.micro_batch} x {data.sequence_length} tokens: {shapes}",
        f"steps: {trainer.steps:,} of {trainer.batch_size:,} sequences, {short(config.tokens_per_step)} tokens each, "
        f"{short(found.tokens)} in all; {found.flops:.3g} FLOPs",
        f"learning rate ({config.optimizer.schedule}): {rates}",
        f"data: {data.corpus}, {short(found.corpus_tokens)} tokens to learn from ({found.fingerprint}), each seen "
        f"{short(found.epochs)} times"
        + (f"; {data.variable_length_share:.1%} of the steps at other lengths" if data.variable_length_share else ""),
    ]
    lines += describe([data])
    if found.epochs > REPEATED:
        lines.append(f"note: more than {REPEATED} passes over the same text are worth less and less: use more of it")
    if trainer.strategy == "deepspeed":
        lines.append(
            f"layout: {counted(devices, 'device')}, ZeRO-{spread.stage}, expert parallel {spread.expert_parallel}, "
            f"{found.micro_batch} sequences x {trainer.accumulate} micro-batches a device, {trainer.precision}, "
            f"checkpointing {'on' if trainer.activation_checkpointing else 'off'}, offload {spread.offload}"
        )
    if not trainer.checkpoint_every:
        lines.append("note: trainer.checkpoint_every=0: a run that is killed starts again")
    return lines


def _on_cluster(config: RunConfig, arguments: argparse.Namespace) -> tuple[int, list[str]]:
    """Number of devices, and what the run needs of each. Raises UserError where its own layout doesn't fit."""
    cluster = Cluster.parse(arguments.cluster)
    planned = plan(config, cluster, layout=Layout.of(config, cluster.devices))
    tokens = config.tokens_per_step * config.trainer.steps
    return cluster.devices, [
        f"on {cluster}, predicted: {planned.memory.total / 2**30:.1f} GiB a device, {planned.time.total:.3g} s a step, MFU "
        f"{planned.mfu:.0%}, {planned.days(tokens):.3g} days, {short(planned.gpu_hours(tokens))} GPU-hours"
    ]
