"""A whole training step beside Hugging Face's OLMoE made bidirectional, with the same loss, as a user would write it."""

from collections.abc import Callable

import torch
import torch.nn.functional as F

from core.config.data import DataConfig
from core.config.model import ModelConfig
from core.config.run import RunConfig
from core.config.training import TrainerConfig
from core.diffusion.batch import Batch
from core.diffusion.masking import mask_tokens
from core.runtime.random_streams import torch_stream
from core.training.module import MaskedDiffusion
from tests.benchmarks import layer
from tests.benchmarks.timing import interleaved

CELLS = [(259, 16, 2, 256), (259, 64, 8, 128), (8192, 16, 2, 256), (8192, 64, 8, 128)]
BATCH, LENGTH = 16, 256


def config_of(vocabulary: int, experts: int, top_k: int, width: int, precision: str) -> RunConfig:
    return RunConfig(
        model=ModelConfig(
            vocab_size=vocabulary, hidden_size=256, num_layers=4, num_heads=4, head_dim=64, num_experts=experts,
            top_k=top_k, expert_width=width, qk_norm="projection",
        ),
        data=DataConfig(sequence_length=LENGTH),
        trainer=TrainerConfig(batch_size=BATCH, precision=precision),  # type: ignore[arg-type]
    )  # fmt: skip


def measure(cell: tuple[int, int, int, int], precision: str, *, rounds: int, device: str) -> dict[str, list[float]]:
    """Seconds of a step by contestant and round: masks in, updated weights out."""
    config = config_of(*cell, precision)
    batch = _batch(config, device)
    contestants = {"floor": _floor(config, batch, device), "ours": _ours(config, batch, device)}
    for implementation in ("eager", "grouped_mm"):
        contestants[f"olmoe {implementation}"] = _olmoe(config, batch, device, implementation)
    return interleaved(contestants, rounds, device)


def _batch(config: RunConfig, device: str) -> Batch:
    generator = torch_stream(0, "benchmark")
    tokens_BL = torch.randint(0, 256, (BATCH, LENGTH), generator=generator)
    batch = Batch.of(tokens_BL, mask_tokens(BATCH, LENGTH, config.objective, generator))
    masking = type(batch.masking)(*(part.to(device) for part in batch.masking))
    return Batch(batch.tokens_BL.to(device), masking, batch.index_M.to(device), batch.router_timestep_B.to(device))


def _autocast(config: RunConfig, device: str) -> torch.autocast:
    return torch.autocast(device, dtype=torch.bfloat16, enabled=config.trainer.precision == "bf16")


def _ours(config: RunConfig, batch: Batch, device: str) -> Callable[[], None]:
    module = MaskedDiffusion(config).to(device)
    optimizer = module.configure_optimizers()["optimizer"]

    def step() -> None:
        with _autocast(config, device):
            loss = module.training_step(batch, 0)["loss"]
        loss.backward()
        module.configure_gradient_clipping(optimizer, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def _floor(config: RunConfig, batch: Batch, device: str) -> Callable[[], None]:
    """What no implementation can leave out: the step's matmuls into memory that is there, torch's attention, and AdamW."""
    model, dtype = config.model, torch.bfloat16 if config.trainer.precision == "bf16" else torch.float32
    rows, wide = BATCH * LENGTH, model.num_heads * model.head_dim
    like = torch.empty(0, device=device, dtype=dtype)
    products = [layer.product(rows, model.hidden_size, wide, like) for _ in range(3)]
    products += [layer.product(rows, wide, model.hidden_size, like), layer.floor(model, rows, like)]
    head = layer.product(len(batch.index_M), model.hidden_size, model.vocab_size, like)
    shape = (BATCH, model.num_heads, LENGTH, model.head_dim)
    queries = [torch.randn(shape, device=device, dtype=dtype, requires_grad=True) for _ in range(3)]
    upstream = torch.randn(shape, device=device, dtype=dtype)
    module = MaskedDiffusion(config).to(device)
    for parameter in module.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer = module.configure_optimizers()["optimizer"]

    def step() -> None:
        for _ in range(model.num_layers):
            for product in products:
                product()
            torch.autograd.grad(F.scaled_dot_product_attention(*queries), queries, upstream)
        head()
        optimizer.step()

    return step


def _olmoe(config: RunConfig, batch: Batch, device: str, implementation: str) -> Callable[[], None]:
    from transformers import OlmoeConfig, OlmoeForCausalLM
    from transformers.models.olmoe.modeling_olmoe import load_balancing_loss_func

    model = config.model
    settings = OlmoeConfig(
        vocab_size=model.vocab_size, hidden_size=256, intermediate_size=model.expert_width, num_hidden_layers=4,
        num_attention_heads=4, num_key_value_heads=4, num_experts=model.num_experts, num_experts_per_tok=model.top_k,
        pad_token_id=None, eos_token_id=1, experts_implementation=implementation, attn_implementation="sdpa",
        use_cache=False,
    )  # fmt: skip
    network = OlmoeForCausalLM(settings).to(device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=0.1)
    # A full mask makes it bidirectional.
    mask = torch.ones(BATCH, 1, LENGTH, LENGTH, dtype=torch.bool, device=device)
    masked_BL, _, weight_B, _ = batch.masking
    assert model.mask_id is not None
    noisy_BL = batch.tokens_BL.masked_fill(masked_BL, model.mask_id)

    def step() -> None:
        with _autocast(config, device):
            # Its own loss counts a two-dimensional mask only, so the parts are called one by one.
            out = network.model(noisy_BL, attention_mask=mask, output_router_logits=True)
            logits_BLV = network.lm_head(out.last_hidden_state)
            entropy_M = F.cross_entropy(logits_BLV[masked_BL].float(), batch.tokens_BL[masked_BL], reduction="none")
            weights_M = weight_B[:, None].expand_as(masked_BL)[masked_BL]
            balance = load_balancing_loss_func(out.router_logits, model.num_experts, model.top_k)
            z_loss = torch.stack([logits.float().logsumexp(-1).square().mean() for logits in out.router_logits]).mean()
            loss = (weights_M * entropy_M).sum() / masked_BL.numel() + 0.01 * balance + 0.001 * z_loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step
