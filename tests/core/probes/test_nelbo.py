"""Minimal pairs: against the enumeration of all masks, a causal model's own likelihood, and a model that knows nothing."""

import itertools
import math

import numpy as np
import pytest
import torch

from core.config.loading import build
from core.data.tasks import TASKS, examples, spoiled
from core.data.tokenizers import load_tokenizer
from core.errors import UserError
from core.model.transformer import Denoiser, initialise
from core.probes.nelbo import minimal_pairs
from core.runtime.random_streams import numpy_stream
from tests.core.data.test_tasks import NAMES
from tests.core.training.test_run import QUICK

TASK = QUICK | {"data.corpus": "task:modular", "objective.kind": "sft", "data.sequence_length": 16}


def made(*changes: dict):
    config = build(TASK, *changes)
    denoiser = Denoiser(config.model)
    initialise(denoiser, 0)
    for parameter in denoiser.parameters():  # an untrained model hardly prefers anything
        parameter.data.mul_(3)
    return config, denoiser.eval()


def tokens_of(prompt: str, response: str, length: int) -> tuple[list[int], int]:
    tokenizer = load_tokenizer("bytes")
    tokens = [*tokenizer.encode("", prompt.encode()).tolist(), *tokenizer.encode("", response.encode()).tolist()]
    return tokens + [tokenizer.vocabulary.eos] * (length - len(tokens)), len(prompt)


@pytest.mark.parametrize("name", NAMES)
def test_a_spoiled_response_is_wrong_by_one_symbol(name: str) -> None:
    for index, (prompt, right) in enumerate(examples(name).held_out[:40]):
        wrong = spoiled(name, prompt, right, np.random.default_rng(index))
        assert len(wrong) == len(right) and sum(a != b for a, b in zip(right, wrong, strict=True)) == 1
        assert TASKS[name].correct(prompt, right) and not TASKS[name].correct(prompt, wrong)


def test_the_margin_is_that_of_all_masks() -> None:
    config, denoiser = made({"data.sequence_length": 14})
    prompt, right = examples("modular").held_out[0]
    wrong = spoiled("modular", prompt, right, numpy_stream(0, "pairs", 0))
    exact = []
    for response in (right, wrong):
        tokens, start = tokens_of(prompt, response, 14)
        region = range(start, 14)
        total = 0.0
        for count in range(1, len(region) + 1):
            masks = list(itertools.combinations(region, count))
            rows = torch.tensor(tokens).repeat(len(masks), 1)
            for row, mask in zip(rows, masks, strict=True):
                row[list(mask)] = config.model.mask_id
            with torch.inference_mode():
                log_p = denoiser(rows)[0].float().log_softmax(-1)
            ce = [-float(log_p[i, list(mask), [tokens[p] for p in mask]].sum()) for i, mask in enumerate(masks)]
            total += len(region) / count * float(np.mean(ce)) / len(region)
        exact.append(total)
    found = minimal_pairs(config, denoiser, 1, draws=4000)
    assert abs(found.margin_N[0] - (exact[1] - exact[0])) < 4 * found.se_N[0] + 1e-4
    assert found.se_N[0] < 0.2 * abs(exact[1] - exact[0])


def test_a_causal_models_margin_is_its_log_likelihood() -> None:
    config, denoiser = made({"model.causal": True, "objective.kind": "autoregressive"})
    prompt, right = examples("modular").held_out[0]
    wrong = spoiled("modular", prompt, right, numpy_stream(0, "pairs", 0))
    nats = []
    for response in (right, wrong):
        tokens, start = tokens_of(prompt, response, 16)
        with torch.inference_mode():
            log_p = denoiser(torch.tensor([[config.model.eos_id, *tokens[:-1]]]))[0].float().log_softmax(-1)[0]
        nats.append(-sum(float(log_p[place, tokens[place]]) for place in range(start, 16)))
    found = minimal_pairs(config, denoiser, 1)
    assert found.margin_N[0] == pytest.approx(nats[1] - nats[0], abs=1e-4) and found.se_N[0] == 0


def test_one_that_was_taught_nothing_has_no_preference() -> None:
    config, denoiser = made()
    found = minimal_pairs(config, denoiser, 100, draws=8)
    assert abs(found.preferred - 0.5) < 4 * math.sqrt(0.25 / 100)
    again = minimal_pairs(config, denoiser, 10, draws=8)
    assert np.allclose(found.margin_N[:10], again.margin_N)


def test_what_cant_be_asked_is_refused() -> None:
    config, denoiser = made()
    with pytest.raises(UserError, match="is no task"):
        minimal_pairs(build(QUICK), denoiser, 5)
    with pytest.raises(UserError, match="task:modular holds out"):
        minimal_pairs(config, denoiser, 99_999)
    with pytest.raises(UserError, match="draws must be at least 1"):
        minimal_pairs(config, denoiser, 1, draws=0)
