"""Block caching against a slow statement of what it approximates, and the autoregressive baseline against recomputation."""

from dataclasses import replace

import pytest
import torch

from core.config.model import ModelConfig, RouterConfig
from core.diffusion.autoregressive import decode_autoregressive
from core.diffusion.predictors import ComparedPredictor, NetworkPredictor
from core.diffusion.sampler import collect, sample
from core.diffusion.sampling import Canvas, Sampled, Sampling
from core.errors import UserError
from core.model.transformer import Denoiser
from tests.core.diffusion.test_sampler import MASK, PROMPTS, SMALL
from tests.core.networks import network_of

CAUSAL = replace(SMALL, causal=True, num_heads=4, num_kv_heads=2, qk_norm="projection")
DENSE = replace(
    CAUSAL, num_experts=0, top_k=0, expert_width=0, dense_width=48, qkv_bias=True, qk_norm="none", tied_embeddings=True
)


def autoregressive(network: Denoiser, prompts: list[list[int]], length: int, **settings) -> Sampled:
    return collect(decode_autoregressive(network, prompts, length, **settings), prompts, length)


@torch.no_grad()
def with_kept(network: Denoiser, before_1L: torch.Tensor, after_1L: torch.Tensor, fresh: slice) -> torch.Tensor:
    """Logits (L, V) of `after`, where attention sees keys and values of `before` outside `fresh`, computed in full."""
    kept, hooks = {}, []
    projections = [p for layer in network.layers for p in (layer.attention.k_proj, layer.attention.v_proj)]
    for projection in projections:
        hooks.append(projection.register_forward_hook(lambda module, given, out: kept.__setitem__(module, out)))
    network(before_1L)
    for hook in hooks:
        hook.remove()

    def restore(module, given, out):
        mixed = kept[module].clone()
        mixed[:, fresh] = out[:, fresh]
        return mixed

    hooks = [projection.register_forward_hook(restore) for projection in projections]
    logits = network(after_1L)[0][0]
    for hook in hooks:
        hook.remove()
    return logits


@pytest.mark.parametrize("kind", ["topk", "film"])
@pytest.mark.parametrize(
    ("cache", "fresh", "shifted"),
    [
        ("dual", slice(7, 11), False),
        ("prefix", slice(7, 15), False),
        ("dual", slice(6, 11), True),
        ("prefix", slice(6, 15), True),
    ],
)
def test_a_cached_call_sees_the_rest_as_it_was_at_the_blocks_first(
    kind: str, cache: str, fresh: slice, shifted: bool
) -> None:
    network = network_of(replace(SMALL, router=RouterConfig(kind=kind), shifted=shifted))
    before = torch.tensor([[1, 2, 3, 9, 8, 7, 6, *[MASK] * 8]])
    after = before.clone()
    after[0, 8], after[0, 10] = 40, 50
    predict, block = NetworkPredictor(network, cache), torch.arange(7, 11)[None]
    canvas = Canvas(before, torch.tensor([15]), block, torch.ones(1, 4, dtype=torch.bool), True)
    torch.testing.assert_close(predict(canvas), network(before)[0][0, 7:11])
    wanted = after[:, 7:11] == MASK
    cached_MV = predict(canvas._replace(tokens_BL=after, wanted_BW=wanted, first=False))
    if kind == "topk":  # a router that is told the mask ratio would be told another one for the rest
        torch.testing.assert_close(cached_MV, with_kept(network, before, after, fresh)[7:11][wanted[0]])
    assert (cached_MV - network(after)[0][0, 7:11][wanted[0]]).abs().max() > 1e-3  # it is an approximation


@pytest.mark.parametrize("cache", ["prefix", "dual"])
def test_caching_is_exact_where_nothing_is_kept(cache: str) -> None:
    network = network_of(SMALL)

    def outcome(which, prompts, **settings):
        settings = Sampling(length=12, temperature=0.8, cache=which, **settings)
        return sample(NetworkPredictor(network, which), prompts, settings, MASK).tokens_BL.tolist()

    one_call_a_block = {"block_length": 4, "steps": 3}
    assert outcome(cache, PROMPTS, **one_call_a_block) == outcome("none", PROMPTS, **one_call_a_block)
    assert outcome(cache, [[], []], steps=6) == outcome("none", [[], []], steps=6)  # all is one block
    in_blocks = {"block_length": 4, "steps": 12}
    assert outcome(cache, PROMPTS, **in_blocks) != outcome("none", PROMPTS, **in_blocks)


def test_what_caching_changes_is_measured_along_the_way() -> None:
    network, settings = network_of(SMALL), Sampling(length=16, block_length=4, cache="dual")
    compared = ComparedPredictor(NetworkPredictor(network, "dual"), NetworkPredictor(network))
    out = sample(compared, PROMPTS, settings, MASK)
    assert torch.equal(out.tokens_BL, sample(NetworkPredictor(network, "dual"), PROMPTS, settings, MASK).tokens_BL)
    assert compared.positions == 3 * 4 * (3 + 2 + 1)
    assert 0 < compared.distance / compared.positions < 1 and 0 <= compared.changed <= compared.positions
    same = ComparedPredictor(NetworkPredictor(network), NetworkPredictor(network))
    sample(same, PROMPTS, settings, MASK)
    assert same.distance == 0 and same.changed == 0


@pytest.mark.parametrize("config", [CAUSAL, DENSE], ids=["mixture", "dense"])
@pytest.mark.parametrize("prompts", [PROMPTS, [[], []]], ids=["uneven", "empty"])
def test_autoregressive_decoding_with_a_cache_is_recomputation(config: ModelConfig, prompts: list) -> None:
    network = network_of(config)
    for temperature in (0.0, 1.0):
        fast, slow = (
            autoregressive(network, prompts, 10, temperature=temperature, cached=cached) for cached in (True, False)
        )
        assert torch.equal(fast.tokens_BL, slow.tokens_BL)
        torch.testing.assert_close(fast.confidence_BL, slow.confidence_BL, equal_nan=True, rtol=1e-4, atol=1e-6)
        assert fast.nfe_B.tolist() == [10] * len(prompts) and fast.tokens_per_call == 1


def test_autoregressive_decoding_is_argmax_after_argmax() -> None:
    network = network_of(CAUSAL)
    for index, prompt in enumerate(PROMPTS):
        expected = [257, *prompt]
        for _ in range(6):
            with torch.no_grad():
                expected.append(int(network(torch.tensor([expected]))[0][0, -1].argmax()))
        out = autoregressive(network, PROMPTS, 6)
        assert out.sequence(index).tolist() == expected[1:]
    alone = autoregressive(network, [PROMPTS[1]], 6, temperature=1.0, streams=[1])
    assert alone.sequence(0).tolist() == autoregressive(network, PROMPTS, 6, temperature=1.0).sequence(1).tolist()


def test_a_model_that_is_not_causal_is_not_decoded_so() -> None:
    with pytest.raises(UserError, match=r"model\.causal is false"):
        next(decode_autoregressive(network_of(SMALL), PROMPTS, 4))
    with pytest.raises(UserError, match=r"prompt 0 has 8 tokens, and model\.max_positions=12 leave 4"):
        next(decode_autoregressive(network_of(replace(CAUSAL, max_positions=12)), [[1] * 8], 5))
    assert autoregressive(network_of(replace(CAUSAL, max_positions=12)), [[1] * 8], 4).length_B.tolist() == [12]


def test_a_shifted_network_decodes_a_token_from_the_state_before_it() -> None:
    network = network_of(replace(SMALL, shifted=True))
    prompt = PROMPTS[1]
    tokens_L = torch.tensor([[*prompt, *[MASK] * 4]])
    with torch.no_grad():
        states_LD = network.hidden(tokens_L).states_BLD[0]
    first = sample(NetworkPredictor(network), [prompt], Sampling(length=4, block_length=1, steps=4), MASK)
    logits_V = network.logits(states_LD[len(prompt) - 1])
    logits_V[MASK] = -torch.inf
    assert first.sequence(0)[len(prompt)] == logits_V.argmax()
    with torch.no_grad():
        torch.testing.assert_close(network(tokens_L)[0][0, 1:], network.logits(states_LD[:-1]))
    one_call_a_block = Sampling(length=12, block_length=4, steps=3)
    plain = sample(NetworkPredictor(network), PROMPTS, one_call_a_block, MASK).tokens_BL
    for cache in ("prefix", "dual"):  # nothing is kept: it is exact
        assert torch.equal(sample(NetworkPredictor(network, cache), PROMPTS, one_call_a_block, MASK).tokens_BL, plain)
