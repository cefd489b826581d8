"""Memory of one device under a layout, by part, at each of the moments when it may be fullest."""

from collections.abc import Mapping
from dataclasses import dataclass

from core.capacity.activations import activations
from core.capacity.assumptions import DEFAULT, Assumptions
from core.capacity.clusters import Cluster
from core.capacity.layouts import Layout
from core.capacity.states import states_of
from core.config.run import RunConfig
from core.training.deepspeed_config import engine_config

BUCKET = 500_000_000  # elements, of DeepSpeed's default

PARTS = {
    "weights": "weights",
    "gradients": "gradients",
    "optimizer": "optimizer (fp32 masters, Adam's moments)",
    "gathered": "weights gathered by ZeRO-3",
    "activations": "activations kept",
    "all_to_all": "all-to-all buffers",
    "logits": "logits, softmax and gradient",
    "working": "one layer's backward pass",
    "step": "the optimizer's step",
    "buckets": "DeepSpeed's buckets",
    "overhead": "CUDA context, libraries, NCCL",
}
MOMENTS = {
    "setup": "as the engine starts",
    "loss": "at the gradient of the logits",
    "layer": "in the last layer's backward pass",
    "first": "in the first layer's, with all gradients there",
    "step": "in the optimizer's step",
}


@dataclass(frozen=True)
class Memory:
    """Bytes on the fullest device at each moment, by part (keys of PARTS), and in host memory.

    host: for one device, what is offloaded or, as it starts, its weights drawn in fp32, whichever is more; host_capacity: the
    device's share of its node's.
    """

    moments: Mapping[str, Mapping[str, int]]
    capacity: int  # of the device
    headroom: float
    host: int
    host_capacity: int

    @property
    def moment(self) -> str:
        """Moment of a step at which the device is fullest."""
        return max(self.moments, key=lambda name: sum(self.moments[name].values()))

    @property
    def parts(self) -> Mapping[str, int]:
        """The parts at that moment."""
        return {name: size for name, size in self.moments[self.moment].items() if size}

    @property
    def total(self) -> int:
        return sum(self.moments[self.moment].values())

    @property
    def limit(self) -> int:
        """Bytes that may be used, with headroom left."""
        return round(self.capacity * (1 - self.headroom))

    @property
    def missing(self) -> int:
        """Bytes that the device lacks; 0 where all fits."""
        return max(0, self.total - self.limit)

    @property
    def fits(self) -> bool:
        return not self.missing and self.host <= self.host_capacity

    @property
    def states(self) -> int:
        """Weights, gradients and the optimizer's alone: what ZeRO's paper counts."""
        parts = self.moments["first"]
        return parts["weights"] + parts["gradients"] + parts["optimizer"]


def memory(
    config: RunConfig,
    layout: Layout,
    cluster: Cluster,
    assumptions: Assumptions = DEFAULT,
    *,
    headroom: float | None = None,
) -> Memory:
    """Memory of one device, in the config's precision. headroom: of its memory, to be left free (default: assumed)."""
    itemsize = 2 if config.trainer.precision == "bf16" else 4
    device, devices = cluster.device, cluster.devices
    state = states_of(config.model, layout, devices, itemsize)
    active = activations(
        config,
        layout.micro_batch,
        layout.expert_parallel,
        layout.activation_checkpointing,
        imbalance=assumptions.imbalance,
        masked_share=assumptions.masked_share,
    )
    bucket = _bucket(config, devices)
    copied = min(bucket, state.local_elements) * itemsize
    buckets = bucket * itemsize + copied if layout.stage else 0
    held = {
        "weights": state.weights,
        "optimizer": state.optimizer,
        "overhead": round(device.overhead + (device.group_overhead if devices > 1 else 0)),
    }
    during = held | {"gathered": state.gathered, "gradients": state.accumulated, "buckets": buckets}
    kept = active.kept - active.exchanged
    passing = {"all_to_all": active.exchanged + active.in_flight, "working": active.layer - active.in_flight}
    share = 1 / config.model.num_layers
    moments = {
        "setup": {"weights": state.setup, "overhead": held["overhead"]},
        "loss": during | {"activations": kept + active.ends, "all_to_all": active.exchanged, "logits": active.loss},
        "layer": during | {"activations": kept} | passing,
        "first": during
        | {"gradients": state.gradients, "activations": round(kept * share)}
        | passing
        | {"all_to_all": round(active.exchanged * share) + active.in_flight},
        "step": held
        | {"gradients": state.gradients, "step": state.step, "buckets": _reducing(layout, buckets, copied, devices)},
    }
    return Memory(
        moments=moments,
        capacity=round(device.memory),
        headroom=assumptions.headroom if headroom is None else headroom,
        host=max(state.host, 4 * state.local_elements),
        host_capacity=round(device.host_memory / cluster.on_node),
    )


def _reducing(layout: Layout, buckets: int, copied: int, devices: int) -> int:
    """Buckets beside the optimizer's step: ZeRO-3 keeps its own; without ZeRO gradients are reduced only now."""
    if layout.stage == 0:
        return copied if devices > 1 else 0
    return buckets - copied if layout.stage == 3 else 0


def _bucket(config: RunConfig, devices: int) -> int:
    """Elements that are reduced at a time: DeepSpeed's default, or what the user's own JSON says."""
    if not config.deepspeed.json:
        return BUCKET
    zero = engine_config(config, devices)["zero_optimization"]
    return int(zero.get("reduce_bucket_size", BUCKET))
