"""A layout: how a run is spread over devices, and the config that trains it so."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, Literal, get_args

from core.capacity.clusters import Cluster
from core.config.model import ModelConfig
from core.config.run import RunConfig
from core.config.training import DeepSpeedConfig
from core.errors import UserError, require

Stage = Literal[0, 1, 2, 3]
Offload = Literal["none", "optimizer", "parameters"]


@dataclass(frozen=True)
class Layout:
    """ZeRO's stage, devices that hold every expert once, sequences of a device at a time, and how often they make a step."""

    stage: Stage = 2
    expert_parallel: int = 1
    micro_batch: int = 1
    accumulate: int = 1
    activation_checkpointing: bool = False
    offload: Offload = "none"

    def __post_init__(self) -> None:
        DeepSpeedConfig(stage=self.stage, expert_parallel=self.expert_parallel, offload=self.offload)  # it refuses
        for name in ("micro_batch", "accumulate"):
            require(getattr(self, name) >= 1, f"a layout's {name} must be at least 1, not {getattr(self, name)}")

    def __str__(self) -> str:
        said = [f"ZeRO-{self.stage}", f"EP {self.expert_parallel}", f"{self.micro_batch} x {self.accumulate}"]
        said += ["checkpointing"] if self.activation_checkpointing else []
        said += [] if self.offload == "none" else [f"offload {self.offload}"]
        return ", ".join(said)

    @classmethod
    def of(cls, config: RunConfig, devices: int) -> "Layout":
        """The layout that a config already asks for. Raises UserError where its batch can't be split over the devices."""
        trainer, spread = config.trainer, config.deepspeed
        check_batch(config, devices * trainer.accumulate)
        return cls(
            stage=spread.stage if trainer.strategy == "deepspeed" else 0,
            expert_parallel=spread.expert_parallel,
            micro_batch=trainer.batch_size // (devices * trainer.accumulate),
            accumulate=trainer.accumulate,
            activation_checkpointing=trainer.activation_checkpointing,
            offload=spread.offload,
        )


def apply(config: RunConfig, layout: Layout) -> RunConfig:
    """The config spread so, in bf16 under DeepSpeed; its batch, seed, model and data are as they were.

    Raises UserError where the layout can't train it.
    """
    sections: dict[str, dict[str, Any]] = {"trainer": {"compile": False}, "deepspeed": {}}
    for key, value in settings(layout).items():
        section, _, name = key.partition(".")
        sections[section][name] = value
    trainer, spread = replace(config.trainer, **sections["trainer"]), replace(config.deepspeed, **sections["deepspeed"])
    return replace(config, trainer=trainer, deepspeed=spread)


def settings(layout: Layout) -> dict[str, Any]:
    """The settings that `apply` makes, by dotted key: what a command line takes."""
    return {
        "trainer.strategy": "deepspeed",
        "trainer.precision": "bf16",
        "trainer.accumulate": layout.accumulate,
        "trainer.activation_checkpointing": layout.activation_checkpointing,
        "deepspeed.stage": layout.stage,
        "deepspeed.expert_parallel": layout.expert_parallel,
        "deepspeed.offload": layout.offload,
    }


def check(config: RunConfig, layout: Layout, cluster: Cluster) -> None:
    """Refuse a layout that the config can't be trained in on these devices. Raises UserError."""
    apply(config, layout)
    parallel, batch, devices = layout.expert_parallel, config.trainer.batch_size, cluster.devices
    require(
        devices % parallel == 0,
        f"expert_parallel={parallel} must divide the number of devices, {devices}",
    )
    require(
        layout.micro_batch * layout.accumulate * devices == batch,
        f"{layout.micro_batch} sequences x {layout.accumulate} micro-batches x {devices} devices isn't "
        f"trainer.batch_size={batch}",
    )


def check_batch(config: RunConfig, parts: int) -> None:
    """Refuse a batch that can't be split into so many equal parts."""
    batch = config.trainer.batch_size
    if batch % parts:
        near = max(1, round(batch / parts)) * parts
        raise UserError(
            f"trainer.batch_size={batch} can't be split over {parts} devices and micro-batches: use a multiple of {parts}, "
            f"such as trainer.batch_size={near}"
        )


def legal(config: RunConfig, cluster: Cluster, *, across_nodes: bool = False, offload: bool = True) -> Iterator[Layout]:
    """Every layout that the config can be trained in on these devices, whether it fits or not.

    across_nodes: let the devices that share out the experts lie in several nodes. offload: keep states in host memory too.
    Raises UserError where the batch can't
    be split.
    """
    check_batch(config, cluster.devices)
    share = config.trainer.batch_size // cluster.devices
    most = cluster.devices if across_nodes else cluster.on_node
    stages: tuple[Stage, ...] = (1, 2) if config.model.tied_embeddings else (1, 2, 3)
    counts = [count for count in range(1, share + 1) if share % count == 0]
    for stage, accumulate, again in product(stages, counts, (False, True)):
        for parallel in _parallel(config.model, cluster.devices, most):
            for where in get_args(Offload) if offload else ("none",):
                if where != "parameters" or stage == 3:
                    yield Layout(stage, parallel, share // accumulate, accumulate, again, where)


def _parallel(model: ModelConfig, devices: int, most: int) -> list[int]:
    if not model.num_experts:
        return [1]
    return [n for n in range(1, most + 1) if model.experts % n == 0 and devices % n == 0]
