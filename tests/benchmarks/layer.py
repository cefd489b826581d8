"""The MoE layer beside its peers, and beside the same FLOPs as plain matmuls: forward and backward, same weights."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.config.model import ModelConfig
from core.model.moe import MoE
from tests.benchmarks.timing import interleaved

# Experts as wide together as a researcher would have them: 256 each of few, 128 each of many.
CELLS = [(8, 2, 256), (8, 8, 256), (16, 2, 256), (16, 8, 256), (64, 2, 128), (64, 8, 128)]
TOKENS, HIDDEN = 8192, 256
RELEASED = (64, 8, 1024)  # LLaDA-MoE-7B-A1B's layer, hidden size 2048


@dataclass(frozen=True)
class Peer:
    """Another implementation: x to output, its parameters, and whether it computes the same function."""

    run: Callable[[Tensor], Tensor]
    parameters: list[nn.Parameter]
    same: bool = True


def ours(config: ModelConfig) -> MoE:
    torch.manual_seed(0)
    made = MoE(config)
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.05)
    return made


def peers_of(made: MoE, config: ModelConfig) -> dict[str, Callable[[], Peer]]:
    """Makers of every peer with the layer's own weights."""
    return {
        "loop": lambda: Peer(lambda x: _loop(made, x), list(made.parameters())),
        "olmoe eager": lambda: _olmoe(made, config, "eager"),
        "olmoe grouped": lambda: _olmoe(made, config, "grouped_mm"),
        "deepspeed": lambda: _deepspeed(made, config),
        "autoep": lambda: _autoep(made, config),
    }


def _loop(made: MoE, x_ND: Tensor) -> Tensor:
    routing, out_ND = made.router(x_ND), torch.zeros_like(x_ND)
    for expert in range(made.num_experts):
        tokens, places = torch.where(routing.experts_NK == expert)
        rows = x_ND[tokens]
        hidden = F.silu(F.linear(rows, made.experts.gate_EWD[expert])) * F.linear(rows, made.experts.up_EWD[expert])
        gates = routing.gates_NK[tokens, places, None].to(x_ND.dtype)
        out_ND.index_add_(0, tokens, F.linear(hidden, made.experts.down_EDW[expert]) * gates)
    return out_ND


def _olmoe(made: MoE, config: ModelConfig, implementation: str) -> Peer:
    from transformers import OlmoeConfig
    from transformers.models.olmoe.modeling_olmoe import OlmoeSparseMoeBlock

    settings = OlmoeConfig(
        hidden_size=config.hidden_size, intermediate_size=config.expert_width, num_experts=config.num_experts,
        num_experts_per_tok=config.top_k, experts_implementation=implementation,
    )  # fmt: skip
    block = OlmoeSparseMoeBlock(settings)
    with torch.no_grad():
        block.gate.weight.copy_(made.router.weight_ED)
        block.experts.gate_up_proj.copy_(torch.cat([made.experts.gate_EWD, made.experts.up_EWD], 1))
        block.experts.down_proj.copy_(made.experts.down_EDW)
    block = block.to(made.router.weight_ED)
    return Peer(lambda x: block(x[None])[0], list(block.parameters()))


def _deepspeed(made: MoE, config: ModelConfig) -> Peer:
    from deepspeed.moe.layer import MoE as DeepSpeedMoE

    from core.model.moe import SwiGLU

    layer = DeepSpeedMoE(
        config.hidden_size, SwiGLU(config.hidden_size, config.expert_width), config.num_experts, k=config.top_k,
        drop_tokens=False, use_rts=False, top2_2nd_expert_sampling=False,
    )  # fmt: skip
    layer.set_deepspeed_parallelism()
    layer.to(made.router.weight_ED.device)
    with torch.no_grad():
        layer.deepspeed_moe.gate.wg.weight.copy_(made.router.weight_ED)
        for number, expert in enumerate(layer.deepspeed_moe.experts.deepspeed_experts):
            expert.gate_proj.weight.copy_(made.experts.gate_EWD[number])
            expert.up_proj.weight.copy_(made.experts.up_EWD[number])
            expert.down_proj.weight.copy_(made.experts.down_EDW[number])
    layer.deepspeed_moe.experts.to(made.router.weight_ED)
    # It divides gates by their sum, whatever is asked: the same work, another function.
    return Peer(lambda x: layer(x[None])[0][0], list(layer.parameters()), same=False)


def _autoep(made: MoE, config: ModelConfig) -> Peer:
    from deepspeed.module_inject.auto_ep import AutoEP
    from deepspeed.module_inject.auto_ep_config import AutoEPConfig
    from deepspeed.module_inject.auto_ep_layer import AutoEPMoELayer
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    settings = Qwen3MoeConfig(
        hidden_size=config.hidden_size, moe_intermediate_size=config.expert_width, num_experts=config.num_experts,
        num_experts_per_tok=config.top_k, norm_topk_prob=False, num_hidden_layers=1, vocab_size=32,
        num_attention_heads=4, num_key_value_heads=4, decoder_sparse_step=1,
    )  # fmt: skip
    model = Qwen3MoeForCausalLM(settings)
    auto = AutoEPConfig(enabled=True, autoep_size=1, preset_model="qwen3_moe", load_balance_coeff=None)
    (spec,) = AutoEP(model, auto).ep_parser()
    layer = AutoEPMoELayer(spec, model.get_submodule(spec.moe_module_name), 1, 0, auto)
    layer.set_deepspeed_parallelism()
    with torch.no_grad():
        layer.router.gate.weight.copy_(made.router.weight_ED)
        layer.experts.w1.copy_(made.experts.gate_EWD)
        layer.experts.w3.copy_(made.experts.up_EWD)
        layer.experts.w2.copy_(made.experts.down_EDW)
    layer = layer.to(made.router.weight_ED)

    def run(x_ND: Tensor) -> Tensor:
        out = layer(x_ND[None])
        return (out[0] if isinstance(out, tuple) else out).view_as(x_ND)

    return Peer(run, list(layer.parameters()))


def floor(config: ModelConfig, tokens: int, like: Tensor) -> Callable[[], None]:
    """The layer's nine expert products, as six plain matmuls over all N K rows at once, into memory that is there."""
    rows, hidden, width = tokens * config.top_k, config.hidden_size, config.expert_width
    make = lambda *shape: torch.randn(*shape).to(like)  # noqa: E731
    x, w_in, w_out, h, dy = (
        make(rows, hidden), make(2 * width, hidden), make(hidden, width), make(rows, width), make(rows, hidden),
    )  # fmt: skip
    gu, y, dh, dw_out, dx, dw_in = (
        make(rows, 2 * width), make(rows, hidden), make(rows, width), make(hidden, width), make(rows, hidden),
        make(2 * width, hidden),
    )  # fmt: skip

    def work() -> None:
        torch.mm(x, w_in.T, out=gu)
        torch.mm(h, w_out.T, out=y)
        torch.mm(dy, w_out, out=dh)
        torch.mm(dy.T, h, out=dw_out)
        torch.mm(gu, w_in, out=dx)
        torch.mm(gu.T, x, out=dw_in)

    return work


def product(rows: int, inputs: int, outputs: int, like: Tensor) -> Callable[[], None]:
    """A linear layer's forward product and its two gradients as plain matmuls, into memory that is there."""
    x, weight, y = (torch.randn(*shape).to(like) for shape in ((rows, inputs), (outputs, inputs), (rows, outputs)))
    out, grad_x, grad_weight = torch.empty_like(y), torch.empty_like(x), torch.empty_like(weight)

    def work() -> None:
        torch.mm(x, weight.T, out=out)
        torch.mm(y, weight, out=grad_x)
        torch.mm(y.T, x, out=grad_weight)

    return work


def flops(config: ModelConfig, tokens: int) -> float:
    """Multiply-adds count 2; forward and backward of the experts, the router left out."""
    return 18.0 * tokens * config.top_k * config.hidden_size * config.expert_width


def measure(
    shape: tuple[int, int, int], dtype: torch.dtype, *, rounds: int, device: str, hidden: int = HIDDEN
) -> tuple[dict[str, list[float]], list[str]]:
    """Seconds by contestant and round, "floor" and "ours" among them; and what could not run here, with the reason."""
    experts, top_k, width = shape
    config = ModelConfig(hidden_size=hidden, num_experts=experts, top_k=top_k, expert_width=width)
    made = ours(config).to(device, dtype)
    x_ND, upstream_ND = (torch.randn(TOKENS, hidden, device=device).to(dtype) for _ in range(2))
    contestants = {"floor": floor(config, TOKENS, x_ND)}
    expected = made(x_ND)[0].detach()
    missing = []
    makers: dict[str, Callable[[], Peer]] = {"ours": lambda: Peer(lambda x: made(x)[0], list(made.parameters()))}
    for name, make in (makers | peers_of(made, config)).items():
        try:
            peer = make()
            found = peer.run(x_ND).detach()
        except Exception as error:  # a peer that can't run here is named, not dropped
            missing.append(f"{name}: {type(error).__name__}: {str(error).splitlines()[0]}")
            continue
        if peer.same:
            # In bf16 a router that rounds its logits sends near ties elsewhere.
            tolerance = 1e-4 if dtype == torch.float32 else 0.2
            error = ((found - expected).norm() / expected.norm()).item()
            assert error < tolerance, f"{name} computes something else: {error:.2e}"
        contestants[name] = _trained(peer, x_ND, upstream_ND)
    return interleaved(contestants, rounds, device), missing


def _trained(peer: Peer, x_ND: Tensor, upstream_ND: Tensor) -> Callable[[], None]:
    def work() -> None:
        inputs_ND = x_ND.detach().requires_grad_()
        peer.run(inputs_ND).backward(upstream_ND)
        for parameter in peer.parameters:
            parameter.grad = None

    return work
