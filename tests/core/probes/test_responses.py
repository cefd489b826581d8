"""Responses as text: the sampler's own, cut where they end, the same in any batch; right ones are counted."""

import pytest
import torch

from core.config.loading import build
from core.data.tasks import examples
from core.data.tokenizers import ByteTokenizer, load_tokenizer
from core.diffusion.autoregressive import decode_autoregressive
from core.diffusion.predictors import NetworkPredictor
from core.diffusion.sampler import collect, sample
from core.diffusion.sampling import Sampling
from core.errors import UserError
from core.model.transformer import Denoiser, initialise
from core.probes import responses
from core.probes.responses import Asked, Responder, exact_match
from tests.core.probes.test_likelihood import made
from tests.core.training.test_run import CAUSAL, QUICK

BYTES = load_tokenizer("bytes")
TASK = QUICK | {"data.corpus": "task:copy"}
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
        events = decode_autoregressive(asked.denoiser, PROMPTS, 16, temperature=temperature, seed=3)
        decoded = collect(events, PROMPTS, 16)
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


def knowing(monkeypatch, wrong: set[int]) -> None:
    """Let the predictor be one that knows the answers, but to some prompts."""
    held = examples("copy").held_out

    def predict(canvas):
        rows = []
        for tokens_L, position_W, wanted_W in zip(canvas.tokens_BL, canvas.position_BW, canvas.wanted_BW, strict=True):
            prompt = bytes(tokens_L[: tokens_L.tolist().index(ord(">")) + 1].tolist()).decode()
            index = next(i for i, pair in enumerate(held) if pair[0] == prompt)
            answer = [*("wrong" if index in wrong else held[index][1]).encode(), *[ByteTokenizer.vocabulary.eos] * 20]
            rows += [answer[int(p) - len(prompt)] for p in position_W[wanted_W]]
        return 20.0 * torch.nn.functional.one_hot(torch.tensor(rows), 259)

    monkeypatch.setattr(responses, "NetworkPredictor", lambda denoiser, cache: predict)


def test_right_answers_are_counted_and_calls_with_them(monkeypatch) -> None:
    config = build(TASK)
    knowing(monkeypatch, {0, 7, 70})
    found = exact_match(config, Denoiser(config.model), Sampling(length=12, threshold=0.9), 100)
    assert [i for i, right in enumerate(found.right_N) if not right] == [0, 7, 70] and found.exact_match == 0.97
    assert found.nfe_N.tolist() == [1] * 100 and found.tokens_per_call == 12
    slow = exact_match(config, Denoiser(config.model), Sampling(length=12, block_length=4, steps=6), 10)
    assert slow.nfe_N.tolist() == [6] * 10 and slow.tokens_per_call == 2 and slow.exact_match == 0.8


def test_an_untaught_model_knows_nothing_and_a_causal_one_is_asked_too() -> None:
    for changes in ({}, CAUSAL):
        config = build(TASK, changes)
        denoiser = Denoiser(config.model)
        initialise(denoiser, 0)
        found = exact_match(config, denoiser.eval(), Sampling(length=4), 5)
        assert found.exact_match == 0 and found.nfe_N.tolist() == [4] * 5


def test_what_is_no_task_or_too_much_is_refused() -> None:
    denoiser = Denoiser(build(TASK).model)
    with pytest.raises(UserError, match=r"data\.corpus=markov is no task: use a run on one of addition"):
        exact_match(build(QUICK), denoiser, Sampling(), 5)
    with pytest.raises(UserError, match="task:copy holds out 2000"):
        exact_match(build(TASK), denoiser, Sampling(), 2001)
