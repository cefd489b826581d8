"""Measurements of decoding, apart from the time itself."""

from dataclasses import replace

import pytest
import torch

from core.config.model import ModelConfig, RouterConfig
from core.errors import UserError
from core.model.transformer import Denoiser, initialise
from core.probes.decoding_cost import Cell, _Held, cache_errors, measure
from tests.core.diffusion.test_sampler import PROMPTS, SMALL


def made(config: ModelConfig = SMALL) -> Denoiser:
    network = Denoiser(config)
    initialise(network, 0)
    return network.eval()


def test_contestants_make_the_calls_that_they_are_compared_at() -> None:
    costs = {cost.contestant: cost for cost in measure(made(), PROMPTS, Cell(16, 4, 2, 2), rounds=1, threshold=0.2)}
    assert {name: cost.nfe for name, cost in costs.items() if "threshold" not in name} == {
        "none": 8, "prefix": 8, "dual": 8, "autoregressive": 16, "LLaDA's loop": 8,
    }  # fmt: skip
    sure = costs["none, threshold 0.2"]
    assert 4 <= sure.nfe <= 16 and sure.tokens_per_call == 16 / sure.nfe
    for cost in costs.values():
        assert len(cost.seconds_R) == 1 and min(cost.seconds_R) > 0 and cost.tokens == 32 and cost.peak_bytes > 0
    assert costs["autoregressive"].peak_bytes < costs["none"].peak_bytes  # its first call is over the prompt alone
    choosing = made(replace(SMALL, router=RouterConfig(kind="expert_choice")))
    whole = measure(choosing, PROMPTS, Cell(8, 4, 1, 2), rounds=1, threshold=0.2)
    assert [cost.contestant for cost in whole] == ["none", "none, threshold 0.2", "LLaDA's loop"]


def test_cache_errors_vanish_where_each_call_is_a_blocks_first() -> None:
    for error in cache_errors(made(), PROMPTS, Cell(16, 4, 3, 4)):
        assert (error.distance, error.changed, error.agreement) == (0, 0, 1)
    errors = {error.cache: error for error in cache_errors(made(), PROMPTS, Cell(16, 4, 3, 1))}
    assert errors["dual"].distance > errors["prefix"].distance > 0 and errors["dual"].agreement < 1


def test_the_peak_is_what_is_alive_at_once() -> None:
    network = made()
    with _Held(network) as held:
        first = torch.zeros(1000)
        second = first + 1
        del first
        torch.zeros(500)
        assert second.sum() == 1000
    assert 8000 <= held.peak <= 8000 + 64
    with _Held(network) as held:
        assert network.embed.weight.t().shape  # a view of a weight is no memory
    assert held.peak == 0


def test_cells_that_llada_s_loop_has_no_steps_for_are_refused() -> None:
    with pytest.raises(UserError, match="takes 42 calls, which don't divide over 16 blocks"):
        Cell(128, 8, 1, 3).check()
    with pytest.raises(UserError, match="block_length=48 doesn't divide length=128"):
        Cell(128, 48, 1, 1).check()
    Cell(128, 32, 1, 4).check()
