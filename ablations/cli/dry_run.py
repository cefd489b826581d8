"""`ablate train CONFIG --dry-run`: what a run would be, checked in seconds wherever it is to be trained."""

import argparse
from collections.abc import Sequence

from ablations.cli.terminal import console
from core.capacity.clusters import Cluster
from core.capacity.layouts import Layout
from core.capacity.planning import plan
from core.config.run import RunConfig
from core.config.stages import Stage
from core.data.corpora import describe
from core.errors import UserError
from core.runtime.units import counted, short
from core.training.checks import check_stages
from core.training.dry_run import DryRun, dry_run

DONE = "nothing was trained; every check passed"
REPEATED = 4  # epochs up to which repeated text is worth almost as much as new text (arXiv 2305.16264)


def run_dry(config: RunConfig, arguments: argparse.Namespace) -> int:
    """Check the run and print its plan. A mistake is a UserError, as it would be of training."""
    _print([*_checked(config, arguments), DONE])
    return 0


def run_dry_stages(stages: Sequence[Stage], arguments: argparse.Namespace) -> int:
    """Check every stage, then print the plan of each."""
    cluster = Cluster.parse(arguments.cluster) if arguments.cluster else None
    check_stages(stages, cluster.devices if cluster else arguments.devices, here=False)
    for number, stage in enumerate(stages, start=1):
        try:
            lines = _checked(stage.config, arguments)
        except UserError as error:
            raise UserError(f"stage {stage.name}: {error}") from None
        _print([f"stage {number}/{len(stages)}, {stage.name}; hands on by {stage.select}", *(f"  {x}" for x in lines)])
    _print([DONE])
    return 0


def _checked(config: RunConfig, arguments: argparse.Namespace) -> list[str]:
    devices = arguments.devices
    layout: list[str] = []
    if arguments.cluster:
        devices, layout = _on_cluster(config, arguments)
    return [*_lines(config, dry_run(config, devices), devices), *layout]


def _print(lines: Sequence[str]) -> None:
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
