"""Activation memory in bytes, tensor by tensor: kept for the backward pass, and the largest temporary allocation.

As on an accelerator, under DeepSpeed (weights and stream in one type of s bytes, norms and routers in fp32). Counted from
what each layer of core.model saves; tests measure the same on real steps.
"""

from dataclasses import dataclass
from functools import lru_cache

from core.config.model import ModelConfig
from core.config.run import RunConfig

INDEX = 8  # bytes of an int64
FP32 = 4


@dataclass(frozen=True)
class Activations:
    """Bytes of one micro-batch on one device.

    kept: by all layers until their backward pass. exchanged: the part of it that expert parallelism adds, rows received
    and rows returned. ends: what else is kept, before and behind the layers. loss: of the logits when their gradient is
    computed. layer: what a layer's backward pass allocates beyond what was kept (with checkpointing the layer's own
    activations too); in_flight: of it, all-to-all's.
    """

    kept: int
    exchanged: int
    ends: int
    loss: int
    layer: int
    in_flight: int


@dataclass(frozen=True)
class MicroBatch:
    """Tokens that one device computes at a time. itemsize: bytes of a weight. imbalance: core.capacity.assumptions."""

    model: ModelConfig
    tokens: int
    length: int
    itemsize: int
    parallel: int = 1
    imbalance: float = 1.0

    @property
    def slots(self) -> int:
        """Rows of the experts' tensors, before any travels."""
        return round(self.tokens * rows_per_token(self.model))

    @property
    def entries(self) -> int:
        """Entries of the routing, of which some routers leave some empty."""
        return self.tokens * self.model.experts if self.model.router.traits.experts_choose else self.slots

    @property
    def rows(self) -> float:
        """Rows that reach the fullest device's experts."""
        return self.slots * (min(self.imbalance, self.parallel) if self.parallel > 1 else 1.0)


def rows_per_token(model: ModelConfig) -> float:
    """Rows that a token has room for among the experts', on average."""
    rows = model.router.traits.rows
    return model.experts_met if rows is None else rows(model)


def activations(
    config: RunConfig, micro_batch: int, expert_parallel: int, again: bool, *, imbalance: float, masked_share: float
) -> Activations:
    """Of a config's micro-batch at full length. again: layers are computed again rather than kept.

    masked_share: of the tokens, whose logits are computed.
    """
    length = config.data.sequence_length
    itemsize = 2 if config.trainer.precision == "bf16" else 4
    batch = MicroBatch(config.model, micro_batch * length, length, itemsize, expert_parallel, imbalance)
    return _activations(batch, again, masked_share)


@lru_cache(maxsize=4096)
def _activations(batch: MicroBatch, again: bool, masked_share: float) -> Activations:
    model, tokens, s = batch.model, batch.tokens, batch.itemsize
    sparse = len(model.sparse_layers)
    layers: list[tuple[int, float, float]] = []  # how many, what one keeps, what its backward pass allocates
    exchanged = in_flight = 0.0
    if sparse:
        exchanged, (moved, in_flight) = exchange_kept(batch), mixture_backward(batch)
        layers.append((sparse, attention_kept(batch) + mixture_kept(batch) + exchanged, moved))
    if model.num_layers > sparse:
        layers.append((model.num_layers - sparse, attention_kept(batch) + dense_kept(batch), dense_backward(batch)))
    losses = sparse * tokens * 2 * FP32 * model.experts  # the auxiliary losses' gradients, which come first
    tables = 2 * FP32 * batch.length * model.head_dim  # of the rotary angles
    if again:
        stream = s * model.hidden_size * tokens
        kept = model.num_layers * stream + sparse * decided(batch)  # the losses hold on to what was decided
        own = stream if s == FP32 else 0  # the first norm's input is what was kept
        layer, in_flight, exchanged = (
            max(whole + passing for _, whole, passing in layers) - own,
            in_flight + exchanged,
            0,
        )
    else:
        kept = round(sum(count * whole for count, whole, _ in layers))
        layer = max(passing for _, _, passing in layers)
    return Activations(
        kept=kept + tables,
        exchanged=round(sparse * exchanged),
        ends=tokens * (INDEX + (FP32 + s) * model.hidden_size + FP32),  # tokens, the last norm, what the head reads
        loss=round(3 * FP32 * masked_share * tokens * model.vocab_size),  # log-probabilities, and two gradients
        layer=round(layer + losses),
        in_flight=round(in_flight),
    )


def norm_kept(width: int, heads: int = 1) -> int:
    """Bytes a token: RMSNorm's input in fp32 (in bf16 a copy) and each row's scale."""
    return FP32 * (width + heads)


def attention_kept(batch: MicroBatch) -> int:
    """Both norms' inputs and outputs, queries and keys before their norm, and what flash attention keeps."""
    model, s = batch.model, batch.itemsize
    inner, shared = model.num_heads * model.head_dim, model.kv_heads * model.head_dim
    per_token = 2 * (norm_kept(model.hidden_size) + s * model.hidden_size)
    if model.qk_norm != "none":
        heads = (model.num_heads, model.kv_heads) if model.qk_norm == "head" else (1, 1)
        per_token += norm_kept(inner, heads[0]) + norm_kept(shared, heads[1])
    per_token += s * (2 * inner + 2 * shared) + FP32 * model.num_heads  # q, output, k, v; each row's log-sum-exp
    tables = 4 * s * batch.length * model.head_dim if s == 2 else 0  # rotary tables, cast for q and for k
    return per_token * batch.tokens + tables


def decided(batch: MicroBatch) -> int:
    """A router's logits and probabilities, gates and experts, and the z-loss's log-sum-exp."""
    return batch.tokens * FP32 * (2 * batch.model.experts + 1) + batch.entries * (FP32 + INDEX)


def mixture_kept(batch: MicroBatch) -> float:
    """The router's input and weight in fp32 and what it decided; the rows' places, and their activations' inputs."""
    model, s, tokens = batch.model, batch.itemsize, batch.tokens
    copies = model.router.traits.input_copies
    copies = max(0, copies - 1) if s == FP32 else copies  # in fp32 the first is the norm's output, which is kept anyway
    kept = decided(batch) + copies * FP32 * model.hidden_size * tokens
    kept += FP32 * model.experts * model.hidden_size if s == 2 else 0
    kept += FP32 * model.experts * tokens if model.router.scores == "sigmoid" else 0
    kept += INDEX * (batch.entries + batch.slots) + 4 * s * model.shared_expert_width * tokens
    return kept + batch.rows * 2 * s * model.width_of_expert


def exchange_kept(batch: MicroBatch) -> float:
    """Bytes that expert parallelism keeps: rows received with their places, and each token's rows as they came back."""
    if batch.parallel == 1:
        return 0.0
    hidden, s = batch.model.hidden_size, batch.itemsize
    return batch.rows * (s * hidden + 2 * INDEX + FP32) + batch.slots * s * (hidden + 1)


def dense_kept(batch: MicroBatch) -> int:
    """The gate, its activation, the other factor and their product."""
    return 4 * batch.itemsize * batch.model.dense_width * batch.tokens


def mixture_backward(batch: MicroBatch) -> tuple[float, float]:
    """(All, all-to-all's part): rows gathered and their gradients, the experts' gradients, both input matrices in one."""
    model, s = batch.model, batch.itemsize
    width, hidden = model.width_of_expert, model.hidden_size
    matrices = 7 * (model.experts // batch.parallel) * width * hidden
    moved = batch.rows * (4 * hidden + 5 * width) + 2 * hidden * batch.tokens
    in_flight = s * hidden * (batch.rows + batch.slots) if batch.parallel > 1 else 0.0
    return s * (matrices + moved) + in_flight, in_flight


def dense_backward(batch: MicroBatch) -> int:
    """Gradients of the product and both its factors, less what has served by then; and one matrix's."""
    model = batch.model
    return batch.itemsize * (
        (2 * model.dense_width + model.hidden_size) * batch.tokens + model.dense_width * model.hidden_size
    )
