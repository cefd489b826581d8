"""Block diffusion: its bound by enumeration, its schedule, and decoding block by block with an exact cache."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from core.config.loading import build
from core.data.synthetic import MarkovSource, posterior_nelbo
from core.diffusion.predictors import ComparedPredictor, NetworkPredictor
from core.diffusion.sampler import decode, sample
from core.diffusion.sampling import Sampling, check_sampling
from core.errors import UserError
from core.model.block_schedule import block_length_at, block_shares
from core.model.transformer import Denoiser
from core.runtime.random_streams import numpy_stream
from tests.core.diffusion.test_sampler import MASK, PROMPTS, SMALL
from tests.core.networks import network_of

BLOCKS = replace(SMALL, block_length=4)


@pytest.fixture(scope="module")
def network() -> Denoiser:
    return network_of(BLOCKS)


def subsets(places: range, count: int) -> list[list[int]]:
    return [list(chosen) for chosen in itertools.combinations(places, count)]


def test_masks_shared_by_all_blocks_give_the_sum_of_the_blocks_bounds() -> None:
    """By enumeration of all masks: L / n sum over masked, n uniform, and each block's own bound apart."""
    made = network_of(replace(SMALL, block_length=2), 1)
    tokens_L = torch.tensor([5, 6, 7, 8])

    def nats(masked: list[int]) -> torch.Tensor:
        """-log p of each masked token given its block's others and the clean blocks before it, 0 elsewhere."""
        noisy_BL = tokens_L[None].clone()
        noisy_BL[0, masked] = MASK
        with torch.no_grad():
            logits_LV = made.logits(made.hidden(noisy_BL, clean_BL=tokens_L[None]).states_BLD[0])
        surprise_L = -logits_LV.log_softmax(-1).gather(1, tokens_L[:, None])[:, 0].double()
        return surprise_L * torch.tensor([place in masked for place in range(4)])

    shared = np.mean(
        [4 / n * np.mean([float(nats(masked).sum()) for masked in subsets(range(4), n)]) for n in range(1, 5)]
    )
    apart = sum(
        np.mean([2 / n * np.mean([float(nats(masked).sum()) for masked in subsets(block, n)]) for n in (1, 2)])
        for block in (range(2), range(2, 4))
    )
    assert shared == pytest.approx(apart, rel=1e-6)


def test_an_exact_denoiser_of_blocks_has_the_sources_entropy_as_its_bound() -> None:
    source = MarkovSource.random(numpy_stream(0, "markov"), states=3)
    everything = np.array(list(itertools.product(range(3), repeat=4)))
    probability_N = np.exp(source.log_probability(everything))
    entropy = -(probability_N * np.log(probability_N)).sum() / 4
    found = {}
    for size in (1, 2, 4):
        by_count = []
        for n in range(1, 5):
            scores = []
            for masked in subsets(range(4), n):
                masked_NL = np.zeros(everything.shape, dtype=bool)
                masked_NL[:, masked] = True
                scores.append(probability_N @ posterior_nelbo(source, everything, masked_NL, size))
            by_count.append(np.mean(scores))
        found[size] = np.mean(by_count)
    assert found == pytest.approx({1: entropy, 2: entropy, 4: entropy}, rel=1e-9)


def test_the_block_length_rises_stays_and_falls() -> None:
    config = build(
        {"data.sequence_length": 16, "data.corpus": "markov", "model.block_length": 4, "trainer.steps": 40},
        {"objective.block_schedule": "wsd", "objective.block_warmup": 0.2, "objective.block_decay": 0.1},
    )
    lengths = [block_length_at(config, step) for step in range(40)]
    assert lengths == [1, 1, 2, 2, 4, 4, 8, 8, *[16] * 28, 8, 8, 4, 4]
    shares = list(block_shares(config))
    for size in (1, 2, 4, 8, 16):
        assert sum(share for length, share in shares if length == size) == pytest.approx(lengths.count(size) / 40)
    constant = build({"model.block_length": 4, "data.sequence_length": 16})
    assert block_length_at(constant, 0) == 4 == block_length_at(constant, 299)
    assert block_length_at(build({}), 3) is None


@pytest.mark.parametrize("cache", ["prefix", "dual"])
@pytest.mark.parametrize("guidance", [0.0, 0.5])
def test_the_cache_of_a_network_with_blocks_is_exact(network: Denoiser, cache: str, guidance: float) -> None:
    settings = Sampling(length=14, temperature=0.7, cache=cache, guidance=guidance, steps=10)
    compared = ComparedPredictor(NetworkPredictor(network, cache), NetworkPredictor(network))
    cached = sample(compared, PROMPTS, settings, MASK, aligned=4)
    assert compared.positions > 15 and compared.distance / compared.positions < 1e-5 and compared.changed == 0
    plain = sample(NetworkPredictor(network), PROMPTS, settings, MASK, aligned=4)
    assert torch.equal(cached.tokens_BL, plain.tokens_BL) and torch.equal(cached.step_BL, plain.step_BL)
    for index, prompt in enumerate(PROMPTS):
        alone = sample(
            NetworkPredictor(network), [prompt], replace(settings, steps=None), MASK, streams=[index], aligned=4
        )
        batch = sample(NetworkPredictor(network, cache), PROMPTS, replace(settings, steps=None), MASK, aligned=4)
        assert alone.sequence(0).tolist() == batch.sequence(index).tolist()


def test_a_predictor_that_is_used_again_keeps_nothing_that_changed(network: Denoiser) -> None:
    settings, predictor = Sampling(length=12, cache="prefix"), NetworkPredictor(network, "prefix")
    for prompts in (PROMPTS, [[7, 7, 7], [4, 5, 6, 7, 8], [9]], [[MASK, 1, 2, 3, MASK, 5, 6, 7, MASK]] * 3):
        again = sample(predictor, prompts, settings, MASK, aligned=4)
        anew = sample(NetworkPredictor(network), prompts, settings, MASK, aligned=4)
        assert torch.equal(again.tokens_BL, anew.tokens_BL)


def test_blocks_count_from_the_sequences_first_token_and_compute_nothing_after_them(network: Denoiser) -> None:
    seen = []
    hidden = network.hidden
    predictor = NetworkPredictor(network, "prefix")
    network.hidden = lambda tokens, **more: (seen.append(tokens.shape[1]), hidden(tokens, **more))[1]
    try:
        events = list(decode(predictor, [PROMPTS[1]], Sampling(length=9), MASK, aligned=4))
    finally:
        network.hidden = hidden
    assert [int(event.position_M[0]) // 4 for event in events] == [1, 1, 1, 2, 2, 2, 2, 3, 3]
    assert [event.block for event in events] == [0, 0, 0, 1, 1, 1, 1, 2, 2]
    # A block's first call also computes the one before, now that it is clean.
    assert seen == [8, 4, 4, 8, 4, 4, 4, 6, 2]


def test_a_network_with_blocks_is_decoded_in_its_own(network: Denoiser) -> None:
    with pytest.raises(UserError, match=r"block_length=2 isn't the network's own \(model.block_length=4\)"):
        check_sampling(BLOCKS, PROMPTS, Sampling(length=8, block_length=2))
    check_sampling(BLOCKS, PROMPTS, Sampling(length=8, block_length=4))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"model.block_length": 0}, "model.block_length must be at least 1"),
        ({"model.block_length": 4, "model.shifted": True}, "model.block_length=4 with model.shifted=true"),
        ({"model.block_length": 4, "model.router.kind": "expert_choice"}, "model.router.kind=expert_choice routes"),
        ({"model.block_length": 4, "model.router.kind": "film"}, "model.router.kind=film routes"),
        ({"model.block_length": 4, "model.causal": True}, "model.block_length=4 with model.causal=true"),
        (
            {"objective.block_schedule": "wsd"},
            "objective.block_schedule=wsd falls back to blocks of model.block_length",
        ),
        ({"model.block_length": 4, "objective.weighting": "cart"}, "objective.weighting=cart weighs"),
        ({"objective.block_warmup": 0.8, "objective.block_decay": 0.3}, "together at most 1"),
    ],
)
def test_blocks_that_make_no_sense_are_refused(settings: dict, expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        build(settings)
