"""Seconds of one training step under a layout, by part: what is computed, what passes through memory, what is sent."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from core.capacity.activations import rows_per_token
from core.capacity.assumptions import DEFAULT, Assumptions
from core.capacity.clusters import Cluster
from core.capacity.layouts import Layout
from core.capacity.links import all_to_all_s, gather_s, reduce_s
from core.capacity.states import ADAM, sizes, states_of
from core.config.model import ModelConfig
from core.config.run import RunConfig
from core.model.flops import flops_per_token

BACKWARD = 2  # times the forward pass, of matmuls
ATTENTION_BACKWARD = 2.5  # flash attention computes its scores again
KERNELS = {
    "layer": 45,
    "mixture": 35,
    "step": 80,
}  # started in one direction (counted, norms fused); and around the layers

PARTS = {
    "matmuls": "matmuls (projections, dense layers, head)",
    "experts": "grouped matmuls of experts",
    "attention": "attention",
    "memory": "elementwise passes over memory",
    "launches": "starting kernels, beyond what they compute",
    "all_to_all": "all-to-all of tokens",
    "gathers": "gathering ZeRO-3's weights, not hidden",
    "reduction": "reducing gradients, not hidden",
    "optimizer": "the optimizer's step and gathering weights",
}
COMPUTED = ("matmuls", "experts", "attention", "memory", "launches")  # what a measured run corrects


class Correction(Protocol):
    """Measured over predicted compute time (core.capacity.calibration)."""

    @property
    def scale(self) -> float: ...


@dataclass(frozen=True)
class StepTime:
    """Seconds of one step by part (keys of PARTS), and what was done in it: tokens and model FLOPs over all devices.

    hidden: seconds of ZeRO-3's gathers and reductions behind the computation, in no part.
    """

    parts: Mapping[str, float]
    hidden: float
    tokens: float
    flops: float

    @property
    def total(self) -> float:
        return sum(self.parts.values())

    @property
    def computed(self) -> float:
        return sum(self.parts[name] for name in COMPUTED)


def step_time(
    config: RunConfig,
    layout: Layout,
    cluster: Cluster,
    calibration: Correction | None = None,
    assumptions: Assumptions = DEFAULT,
) -> StepTime:
    """One step of a config's batch, in its precision.

    Only mean lengths and the mean share of masked tokens count here.
    """
    tokens = config.tokens_per_step / (cluster.devices * layout.accumulate)  # of a device's micro-batch
    micro = _micro_batch(config, layout, cluster, tokens, assumptions)
    parts = {name: seconds * layout.accumulate for name, seconds in micro.items()}
    if calibration is not None:
        parts |= {name: parts[name] * calibration.scale for name in COMPUTED}
    sent = _sent(config, layout, cluster, assumptions)
    hidden = 0.0
    if layout.stage == 3:
        total = sum(sent.values())
        hidden = min(assumptions.overlap * total, sum(parts[name] for name in COMPUTED))
        sent = {name: seconds * (1 - hidden / total) if total else 0.0 for name, seconds in sent.items()}
    parts |= sent
    parts["optimizer"] = _update(config, layout, cluster, assumptions)
    return StepTime(parts, hidden, config.tokens_per_step, flops_per_token(config) * config.tokens_per_step)


def _micro_batch(
    config: RunConfig, layout: Layout, cluster: Cluster, tokens: float, assume: Assumptions
) -> dict[str, float]:
    """Seconds of one micro-batch on one device: computing, and all-to-all."""
    model, device = config.model, cluster.device
    low = config.trainer.precision == "bf16"
    rate, itemsize = (device.flops, 2) if low else (device.flops_fp32, 4)
    reached = assume.matmul if low else assume.fp32_matmul
    grouped = assume.grouped_matmul if low else assume.fp32_matmul * assume.grouped_matmul / assume.matmul
    again = layout.activation_checkpointing
    passes = 1 + BACKWARD + again
    sparse, layers, parallel = len(model.sparse_layers), model.num_layers, layout.expert_parallel
    uneven = min(assume.imbalance, parallel) if parallel > 1 else 1.0
    rows = rows_per_token(model) * tokens * uneven * sparse
    dense = 2 * tokens * _dense_weights(model) * passes
    head = 2 * tokens * masked(config) * model.hidden_size * model.vocab_size * (1 + BACKWARD)
    routed = 2 * tokens * sparse * model.experts * model.hidden_size * passes
    scores = 4 * tokens * model.num_heads * model.head_dim * config.data.sequence_length * layers
    scores *= (0.5 if model.causal else 1.0) * (1 + ATTENTION_BACKWARD + again)
    expert_flops = 6 * rows * model.hidden_size * model.width_of_expert * passes
    read = _matrices(model, parallel) * itemsize * sparse * passes / (device.bandwidth * assume.memory)
    seconds = {
        "matmuls": (dense + head) / (rate * reached) + routed / (device.flops_fp32 * assume.fp32_matmul),
        "experts": max(expert_flops / (rate * grouped), read),
        "attention": scores / (rate * (assume.attention if low else assume.fp32_matmul / 2)),
        "memory": _moved(config, parallel, tokens, rows, again, itemsize) / (device.bandwidth * assume.memory),
    }
    kernels = (KERNELS["layer"] * layers + KERNELS["mixture"] * sparse) * (2 + again) + KERNELS["step"]
    seconds["launches"] = max(0.0, kernels * assume.launch - sum(seconds.values()))
    exchanges = 2 * passes if parallel > 1 else 0
    sent = rows * model.hidden_size * itemsize  # by all layers, once
    seconds["all_to_all"] = exchanges * (all_to_all_s(sent, parallel, cluster, assume) if parallel > 1 else 0.0)
    seconds["all_to_all"] += exchanges * sparse * assume.latency
    return seconds


def masked(config: RunConfig) -> float:
    """The mean share of tokens whose logits are computed: half under masked diffusion, all in the other objectives."""
    objective = config.objective
    return (1 + objective.epsilon) / 2 if objective.traits.masks_all else 1.0


def _dense_weights(model: ModelConfig) -> int:
    """Weights that every token meets once, router and head apart."""
    inner, shared = model.num_heads * model.head_dim, model.kv_heads * model.head_dim
    attention = model.hidden_size * (2 * inner + 2 * shared)
    sparse = len(model.sparse_layers)
    wide = (model.num_layers - sparse) * model.dense_width + sparse * model.shared_expert_width
    return model.num_layers * attention + 3 * model.hidden_size * wide


def _matrices(model: ModelConfig, parallel: int) -> int:
    """Elements of the experts that a device holds in one layer."""
    return 3 * (model.experts // parallel) * model.width_of_expert * model.hidden_size


def _moved(config: RunConfig, parallel: int, tokens: float, rows: float, again: bool, itemsize: int) -> float:
    """Bytes that pass through memory outside of matmuls, forward and backward: reads and writes of each kernel, counted.

    With layers computed again their forward part, about two fifths, counts twice.
    """
    model, s = config.model, itemsize
    inner, shared = model.num_heads * model.head_dim, model.kv_heads * model.head_dim
    norm = 44 if s == 2 else 20  # bytes a feature: to fp32, norm, back; and the same of the gradient
    normed = 2 * model.hidden_size + (inner + shared if model.qk_norm != "none" else 0)
    per_token = norm * normed + 18 * s * (inner + shared) + 12 * s * model.hidden_size
    layers, sparse = model.num_layers, len(model.sparse_layers)
    moved = layers * tokens * per_token
    moved += tokens * 13 * s * ((layers - sparse) * model.dense_width + sparse * model.shared_expert_width)
    moved += sparse * tokens * (16 * model.hidden_size + 40 * model.experts)
    moved += rows * s * ((12 if parallel == 1 else 30) * model.hidden_size + 29 * model.width_of_expert)
    # Both input matrices put into one, twice; gradients split, copied into buckets.
    moved += sparse * 7 * _matrices(model, parallel) * s
    moved *= 1.4 if again else 1.0
    moved += 36 * tokens * masked(config) * model.vocab_size  # logits to fp32, softmax, and back
    return moved + 6 * s * model.vocab_size * model.hidden_size  # the embedding's gradient is as large as the table


def _sent(config: RunConfig, layout: Layout, cluster: Cluster, assume: Assumptions) -> dict[str, float]:
    """Seconds of gathering weights and reducing gradients, hidden or not.

    Stages 0 and 1 reduce once a step; 2 and 3 every micro-batch. DeepSpeed 0.19.8 all-reduces whole buckets up to stage 2,
    and scatters at stage 3, which gathers each weight for the forward pass and for the backward pass.
    """
    itemsize = 2 if config.trainer.precision == "bf16" else 4
    shared, experts = (elements * itemsize for elements in _local(config.model, layout))
    parallel, devices, times = layout.expert_parallel, cluster.devices, layout.accumulate
    groups = ((shared, devices, 1), (experts, devices // parallel, parallel))
    three = layout.stage == 3
    reduced = sum(reduce_s(size, count, apart, cluster, assume, whole=not three) for size, count, apart in groups)
    reduced *= times if layout.stage >= 2 else 1
    if not three:
        return {"gathers": 0.0, "reduction": reduced}
    calls = config.model.num_layers
    gathered = sum(gather_s(size, count, apart, cluster, assume, calls=calls) for size, count, apart in groups)
    if layout.offload == "parameters":  # each device brings its part from the host
        gathered += sum(size / count for size, count, _ in groups) / cluster.device.host_link
    return {"gathers": 2 * times * gathered, "reduction": reduced}


def _local(model: ModelConfig, layout: Layout) -> tuple[int, int]:
    """Elements that every device computes with: shared by all, and of its experts."""
    counted = sizes(model)
    return sum(counted.matrices) + sum(counted.vectors), sum(counted.experts) // layout.expert_parallel


def _update(config: RunConfig, layout: Layout, cluster: Cluster, assume: Assumptions) -> float:
    """The optimizer's step: its states read and written once, on the device or the host; then weights are gathered."""
    itemsize = 2 if config.trainer.precision == "bf16" else 4
    device, devices = cluster.device, cluster.devices
    state = states_of(config.model, layout, devices, itemsize)
    if layout.stage == 0:
        return (state.optimizer // 8) * 28 / (device.bandwidth * assume.memory)
    elements = states_of(config.model, _kept_here(layout), devices, itemsize).optimizer // ADAM
    if layout.offload == "none":
        update = elements * (28 + 3 * itemsize + 4) / (device.bandwidth * assume.memory)
    else:
        update = elements * 30 * cluster.on_node / device.host_bandwidth + 2 * itemsize * elements / device.host_link
    if layout.stage == 3:
        return update
    shared, experts = (size * itemsize for size in _local(config.model, layout))
    parallel = layout.expert_parallel
    return (
        update
        + gather_s(shared, devices, 1, cluster, assume)
        + gather_s(experts, devices // parallel, parallel, cluster, assume)
    )


def _kept_here(layout: Layout) -> Layout:
    return Layout(layout.stage, layout.expert_parallel, layout.micro_batch, layout.accumulate)
