"""Block diffusion's one pass over noisy and clean tokens against a pass for each block."""

from dataclasses import replace

import pytest
import torch

from core.config.loading import build
from core.config.model import ModelConfig
from core.model.attention import beside_clean, block_causal
from core.model.flops import count, flops_per_token
from tests.core.diffusion.test_sampler import MASK, SMALL
from tests.core.networks import network_of

DENSE = replace(SMALL, num_experts=0, top_k=0, expert_width=0, dense_width=32, num_kv_heads=1)
CPU = torch.device("cpu")


@pytest.mark.parametrize("config", [SMALL, DENSE], ids=["mixture", "dense"])
@pytest.mark.parametrize("size", [1, 3, 4, 10])
def test_one_pass_is_a_pass_for_each_block_gradients_included(config: ModelConfig, size: int) -> None:
    blocks, plain = network_of(replace(config, block_length=size)), network_of(config)
    generator = torch.Generator().manual_seed(size)
    clean_BL = torch.randint(0, 250, (3, 10), generator=generator)
    noisy_BL = clean_BL.masked_fill(torch.rand(3, 10, generator=generator) < 0.5, MASK)
    at_once_BLD = blocks.hidden(noisy_BL, clean_BL=clean_BL).states_BLD
    parts = []
    for start in range(0, 10, size):
        given_BL = torch.cat([clean_BL[:, :start], noisy_BL[:, start : start + size]], 1)
        parts.append(plain.hidden(given_BL, block_length=size).states_BLD[:, start:])
    one_by_one_BLD = torch.cat(parts, 1)
    torch.testing.assert_close(at_once_BLD, one_by_one_BLD, rtol=1e-4, atol=1e-5)
    weight_BLD = torch.randn(at_once_BLD.shape, generator=generator)
    for states_BLD in (at_once_BLD, one_by_one_BLD):
        (states_BLD * weight_BLD).sum().backward()
    for (name, one), other in zip(blocks.named_parameters(), plain.parameters(), strict=True):
        if one.grad is not None:
            torch.testing.assert_close(one.grad, other.grad, rtol=1e-3, atol=1e-4, msg=name)


def test_a_block_sees_no_later_token_and_nothing_noisy_of_earlier_blocks() -> None:
    network = network_of(replace(SMALL, block_length=4))
    noisy_BL, clean_BL = torch.full((1, 12), MASK), torch.arange(12)[None]
    before = network.hidden(noisy_BL, clean_BL=clean_BL).states_BLD
    for changed, stay in ((9, slice(0, 12)), (5, slice(0, 8))):
        other_BL = clean_BL.clone()
        other_BL[0, changed] = 99
        after = network.hidden(noisy_BL, clean_BL=other_BL).states_BLD
        torch.testing.assert_close(after[:, stay], before[:, stay])
        assert stay.stop == 12 or not torch.allclose(after[:, 8:], before[:, 8:])
    other_BL = noisy_BL.clone()
    other_BL[0, 1] = 99
    after = network.hidden(other_BL, clean_BL=clean_BL).states_BLD
    torch.testing.assert_close(after[:, 4:], before[:, 4:])
    assert not torch.allclose(after[:, :4], before[:, :4])


def test_masks_are_the_papers() -> None:
    for length, size in ((6, 2), (7, 3), (4, 1)):
        mask = beside_clean(length, size, CPU).mask[0, 0]
        for q in range(2 * length):
            for k in range(2 * length):
                own, other = (q % length) // size, (k % length) // size
                noisy_q, noisy_k = q < length, k < length
                sees = (own == other if noisy_k else own > other) if noisy_q else (not noisy_k and own >= other)
                assert mask[q, k] == sees
        assert torch.equal(block_causal(length, size, CPU).mask[0, 0], mask[length:, length:])


def test_flops_count_what_attention_sees_and_every_weight_twice_but_the_heads() -> None:
    base = {"data.sequence_length": 32, "model.num_layers": 3}
    plain, blocks = build(base), build(base, {"model.block_length": 8})
    seen = int(beside_clean(32, 8, CPU).mask.sum())
    inner = plain.model.num_heads * plain.model.head_dim
    active, head = count(plain.model).active, plain.model.vocab_size * plain.model.hidden_size
    assert flops_per_token(blocks) == 6 * (2 * active - head) + 12 * 3 * inner * seen / 32
    assert flops_per_token(build(base, {"model.block_length": 32})) == flops_per_token(plain)
    scheduled = build(base, {"model.block_length": 8, "objective.block_schedule": "wsd", "objective.block_decay": 0.0})
    doubled = sum(flops_per_token(build(base, {"model.block_length": size})) for size in (1, 2, 4, 8, 16))
    expected = 0.9 * flops_per_token(plain) + 0.1 * doubled / 5
    assert flops_per_token(scheduled) == pytest.approx(expected)
