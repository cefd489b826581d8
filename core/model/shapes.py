"""Names and shapes of a model's weights, from its config alone: the table that counts and checks read, without torch.

Shapes: E experts, W expert width, D hidden size, F features and T bins of a timestep.
"""

from collections.abc import Iterable, Iterator
from functools import lru_cache

from core.config.model import ModelConfig, Shape, Weight
from core.registry import load

EXPERTS = ".experts."  # in the name of a weight that is stacked over experts


@lru_cache(maxsize=512)
def router_weights(model: ModelConfig) -> tuple[Weight, ...]:
    """The weights of one sparse layer's router, as its kind declares them or else as its class registers them."""
    kind = model.router.traits
    if kind.weights is not None:
        return kind.weights(model)
    import torch  # seconds: for a kind that is registered as a class alone, which has imported it already

    with torch.device("meta"):
        network = load(kind.implementation)(model)
    buffers = {name for name, _ in network.named_buffers()}
    return tuple(
        Weight(name, tuple(value.shape), hasattr(value, "per_sequence"), name in buffers)
        for name, value in network.state_dict(keep_vars=True).items()
    )


@lru_cache(maxsize=512)
def layer_weights(model: ModelConfig, sparse: bool) -> tuple[Weight, ...]:
    """The weights of a sparse or a dense layer, in order. Layers of one kind have the same."""
    hidden = model.hidden_size
    if not sparse:
        feed_forward = _under("dense", _swiglu(hidden, model.dense_width))
    else:
        wide = (model.experts, model.width_of_expert, hidden)
        feed_forward = [
            *_under("moe.router", router_weights(model)),
            Weight("moe.experts.gate_EWD", wide),
            Weight("moe.experts.up_EWD", wide),
            Weight("moe.experts.down_EDW", (wide[0], hidden, wide[1])),
        ]
        if model.shared_expert_width:
            feed_forward += _under("moe.shared_expert", _swiglu(hidden, model.shared_expert_width))
    return (
        Weight("input_norm.weight", (hidden,)),
        *_under("attention", _attention(model)),
        Weight("post_attention_norm.weight", (hidden,)),
        *feed_forward,
    )


def outer_weights(model: ModelConfig) -> tuple[list[Weight], list[Weight]]:
    """The weights before the layers and those behind them."""
    table = (model.vocab_size, model.hidden_size)
    head = [] if model.tied_embeddings else [Weight("head.weight", table)]
    return [Weight("embed.weight", table)], [Weight("norm.weight", (model.hidden_size,)), *head]


def weights(model: ModelConfig) -> Iterator[Weight]:
    """All weights, in the order of the network's state dict; its parameters are those that are no buffer, in their order."""
    before, behind = outer_weights(model)
    sparse = set(model.sparse_layers)
    yield from before
    for index in range(model.num_layers):
        yield from _under(f"layers.{index}", layer_weights(model, index in sparse))
    yield from behind


@lru_cache(maxsize=16)
def shapes(model: ModelConfig) -> dict[str, Shape]:
    """The shapes of a model's weights, by name, in the order of its state dict."""
    return {weight.name: weight.shape for weight in weights(model)}


def _attention(model: ModelConfig) -> Iterator[Weight]:
    hidden, inner, shared = model.hidden_size, model.num_heads * model.head_dim, model.kv_heads * model.head_dim
    for name, width in (("q_proj", inner), ("k_proj", shared), ("v_proj", shared)):
        yield Weight(f"{name}.weight", (width, hidden))
        if model.qkv_bias:
            yield Weight(f"{name}.bias", (width,))
    yield Weight("o_proj.weight", (hidden, inner))
    if model.qk_norm != "none":
        per_head = model.qk_norm == "head"
        yield Weight("q_norm.weight", (model.head_dim if per_head else inner,))
        yield Weight("k_norm.weight", (model.head_dim if per_head else shared,))


def _swiglu(hidden: int, width: int) -> list[Weight]:
    inward = (width, hidden)
    return [
        Weight("gate_proj.weight", inward),
        Weight("up_proj.weight", inward),
        Weight("down_proj.weight", inward[::-1]),
    ]


def _under(prefix: str, inner: Iterable[Weight]) -> list[Weight]:
    return [weight._replace(name=f"{prefix}.{weight.name}") for weight in inner]
