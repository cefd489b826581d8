"""Responses as text: the sampler's own, cut where they end, the same in any batch."""

import pytest
import torch

from core.data.tokenizers import load_tokenizer
from core.diffusion.autoregressive import sample_autoregressive
from core.diffusion.predictors import NetworkPredictor
from core.diffusion.sampler import sample
from core.diffusion.sampling import Sampling
from core.errors import UserError
from core.probes.responses import Asked, Responder
from tests.core.probes.test_likelihood import CAUSAL, made

BYTES = load_tokenizer("bytes")
PROMPTS = [[104, 105], [97, 98, 99, 100], [120], [104, 105]]


def responder(changes: dict | None = None, **options) -> Responder:
    settings = Sampling(length=8, block_length=8, seed=3)
    return Responder(made(changes or {}), BYTES, options.pop("settings", settings), **options)


@pytest.mark.parametrize("changes", [{}, CAUSAL])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_they_are_what_the_sampler_decodes(changes: dict, temperature: float) -> None:
    asked = responder(changes)
    found = asked.respond([Asked(prompt, 16, (), temperature) for prompt in PROMPTS])
    settings = Sampling(length=16, block_length=8, temperature=temperature, seed=3)
    if changes:
        decoded = sample_autoregressive(asked.denoiser, PROMPTS, 16, temperature=temperature, seed=3)
    else:
        decoded = sample(NetworkPredictor(asked.denoiser), PROMPTS, settings, asked.denoiser.config.mask_id)
    for row, prompt in enumerate(PROMPTS):
        tokens = decoded.sequence(row).tolist()[len(prompt) :]
        assert 257 not in tokens and found[row] == BYTES.decode(tokens)


@pytest.mark.parametrize("changes", [{}, CAUSAL])
def test_a_batch_changes_nothing(changes: dict) -> None:
    asked = [Asked(prompt, 24, ("e", "a"), 1.0) for prompt in PROMPTS]
    one, many = (responder(changes, batch=size).respond(asked) for size in (1, 3))
    assert one == many and len(set(one)) > 2  # equal prompts draw other numbers


def test_a_response_ends_at_what_ends_it() -> None:
    asked = responder()
    whole = asked.respond([Asked(PROMPTS[1], 16, (), 1.0)])[0]
    for stop in (whole[3], whole[9:12]):
        assert asked.respond([Asked(PROMPTS[1], 16, (stop, ""), 1.0)])[0] == whole[: whole.index(stop)]
    tokens = list(whole.encode()[:5])
    assert asked.cut([97, 98, 257, 99], ()) == ("ab", True) and asked.cut(tokens[:0], ("x",)) == ("", False)
    assert asked.cut([97, 98, 99, 257], ("c", "b")) == ("a", True)


@pytest.mark.parametrize("changes", [{}, CAUSAL])
def test_nothing_is_decoded_after_the_end(changes: dict, monkeypatch) -> None:
    asked = responder(changes)
    calls = []
    logits = asked.denoiser.logits
    monkeypatch.setattr(asked.denoiser, "logits", lambda states: calls.append(1) or logits(states))
    asked.respond([Asked(PROMPTS[0], 64)])
    assert len(calls) == 64
    calls.clear()
    first = asked.respond([Asked(PROMPTS[0], 64)])[0][0]
    calls.clear()
    assert asked.respond([Asked(PROMPTS[0], 64, (first,))]) == [""]
    assert len(calls) == (16 if changes else 8)


def test_lengths_that_blocks_do_not_divide() -> None:
    asked = responder(tokens_per_call=4)
    settings = asked.settings_for(Asked([1], 13))
    assert (settings.length, settings.block_length, settings.steps) == (16, 8, 4)
    assert asked.settings_for(Asked([1], 5)).length == 5
    assert len(asked.respond([Asked([97], 13)])[0]) <= 13
    sure = responder(settings=Sampling(length=8, block_length=8, threshold=0.9))
    assert sure.settings_for(Asked([1], 13)).steps is None and sure.respond([Asked([97], 13)])


def test_prompts_lose_their_beginning() -> None:
    asked = responder()
    assert asked.fit([1, 2, 3], 16, 24) == ([1, 2, 3], False)
    assert asked.fit(list(range(10)), 13, 24) == (list(range(2, 10)), True)
    with pytest.raises(UserError, match="leaves no room for a prompt within 16: ask for fewer with --length"):
        asked.fit([1], 16, 16)


def test_a_causal_model_needs_no_mask() -> None:
    asked = responder(CAUSAL | {"model.mask_id": None})
    assert len(asked.respond([Asked([97], 3)])) == 1
    assert torch.is_inference_mode_enabled() is False
