"""The fastest layout that fits: every legal one weighed, and why the others were not taken."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from core.capacity.assumptions import DEFAULT, Assumptions
from core.capacity.calibration import Calibration
from core.capacity.clusters import GB, Cluster
from core.capacity.layouts import Layout, apply, check, legal
from core.capacity.memory import PARTS, Memory, memory
from core.capacity.timing import StepTime, step_time
from core.config.run import RunConfig
from core.errors import UserError, require

DAY = 86400


@dataclass(frozen=True)
class Candidate:
    """A layout with what it needs and takes."""

    layout: Layout
    memory: Memory
    time: StepTime


@dataclass(frozen=True)
class Refusal:
    """A layout that can't fit, and what it lacks in words."""

    layout: Layout
    reason: str
    memory: Memory


@dataclass(frozen=True)
class Plan:
    """The layout proposed for a config on a cluster. others: those that fit too, fastest first; refused: that don't fit."""

    config: RunConfig
    cluster: Cluster
    layout: Layout
    memory: Memory
    time: StepTime
    others: tuple[Candidate, ...]
    refused: tuple[Refusal, ...]
    calibration: Calibration | None = None

    @property
    def mfu(self) -> float:
        """Model FLOPs of a step (core.model.flops.flops_per_token) over what the devices could do in its time (arXiv
        2204.02311, App. B)."""
        return self.time.flops / (self.time.total * self.cluster.devices * self.cluster.device.flops)

    @property
    def tokens_per_second(self) -> float:
        """Over all devices."""
        return self.time.tokens / self.time.total

    def days(self, tokens: float) -> float:
        """Days to so many tokens, at work all the time: no failures, validation or checkpoints."""
        return tokens / self.tokens_per_second / DAY

    def gpu_hours(self, tokens: float) -> float:
        """Device-hours to so many tokens."""
        return self.days(tokens) * 24 * self.cluster.devices


def plan(
    config: RunConfig,
    cluster: Cluster,
    *,
    layout: Layout | None = None,
    calibration: Calibration | None = None,
    assumptions: Assumptions = DEFAULT,
    across_nodes: bool = False,
    offload: bool = True,
) -> Plan:
    """The fastest layout that fits, in bf16 under DeepSpeed; or only the given one, checked.

    across_nodes: weigh expert parallelism over several nodes too; offload: and states in host memory. Raises UserError where
    the batch can't be split, and where nothing fits: it says what the nearest layout lacks, and what would help.
    """
    require(
        config.model.block_length is None,
        "model.block_length: a layout isn't planned for block diffusion, whose sequences are twice as long in training as "
        "what is counted here",
    )
    config = apply(config, layout or Layout())
    if layout is not None:
        check(config, layout, cluster)
        wanted = [layout]
    else:
        wanted = list(legal(config, cluster, across_nodes=across_nodes, offload=offload))
    fitting: list[Candidate] = []
    refused: list[Refusal] = []
    for one in wanted:
        needs = memory(config, one, cluster, assumptions)
        if needs.fits:
            fitting.append(Candidate(one, needs, step_time(config, one, cluster, calibration, assumptions)))
        else:
            refused.append(Refusal(one, shortfall(needs), needs))
    if not fitting:
        raise UserError(_nothing_fits(config, cluster, refused))
    # Of equally fast ones that which leaves more memory.
    best, *others = sorted(fitting, key=lambda one: (round(one.time.total, 9), one.memory.total))
    return Plan(
        apply(config, best.layout),
        cluster,
        best.layout,
        best.memory,
        best.time,
        tuple(others),
        tuple(refused),
        calibration,
    )


def shortfall(needs: Memory) -> str:
    """Describe what a layout that doesn't fit lacks, with its two largest parts."""
    if not needs.missing:
        return f"{needs.host / GB:.0f} GB of host memory a device, of {needs.host_capacity / GB:.0f}"
    largest = sorted(needs.parts, key=lambda name: -needs.parts[name])[:2]
    parts = " and ".join(f"{needs.parts[name] / GB:.1f} GB of {PARTS[name]}" for name in largest)
    return f"{needs.total / GB:.1f} GB, {needs.missing / GB:.1f} GB too many: {parts}"


def reasons(refused: Sequence[Refusal]) -> list[tuple[str, int]]:
    """The part that is largest in what was refused, with how often it is; most often first."""
    found = Counter(
        "host memory"
        if not one.memory.missing
        else PARTS[max(one.memory.parts, key=lambda name: one.memory.parts[name])]
        for one in refused
    )
    return found.most_common()


def _nothing_fits(config: RunConfig, cluster: Cluster, refused: Sequence[Refusal]) -> str:
    nearest = min(refused, key=lambda one: (one.memory.missing, one.memory.host))
    needs, layout = nearest.memory, nearest.layout
    helps = []
    if needs.missing and not layout.activation_checkpointing:
        helps.append("activation checkpointing")
    if needs.missing and layout.offload == "none":
        helps.append("offload=optimizer")
    if layout.micro_batch > 1:
        helps.append("smaller micro-batches")
    helps.append(_more_devices(config, cluster, layout))
    helps.append("devices with more memory")
    count = f"no layout of {len(refused)} fits" if len(refused) > 1 else "the layout doesn't fit"
    held = f"{cluster.device.memory / GB:.0f} GB with {needs.headroom:.0%} left free"
    return (
        f"{count} {cluster} ({held}); {'the nearest, ' * (len(refused) > 1)}{layout}, needs {shortfall(needs)}. "
        f"What would help: {', '.join(part for part in helps if part)}"
    )


def _more_devices(config: RunConfig, cluster: Cluster, layout: Layout) -> str:
    """Describe the number of devices that the nearest layout would fit on, where spreading states further is enough."""
    count = cluster.devices
    for _ in range(10):
        count *= 2
        wider = Cluster(count, cluster.device, min(count, cluster.per_node))
        if memory(config, replace(layout, stage=max(layout.stage, 1)), wider).fits:
            return f"{count} devices"
    return ""
