"""Likelihoods of continuations: against the enumeration of all masks, a causal model's log-probabilities, other batches."""

import itertools
import math

import pytest
import torch

from core.config.loading import build
from core.diffusion.predictors import NetworkPredictor
from core.diffusion.sampler import sample
from core.diffusion.sampling import Sampling
from core.errors import UserError
from core.model.transformer import Denoiser, initialise
from core.probes.likelihood import Continued, log_likelihoods
from tests.core.training.test_run import CAUSAL, QUICK

ASKED = [
    Continued([1, 2, 3], [4, 5, 6, 7]),
    Continued([], [9, 8, 7, 6, 5]),
    Continued([7] * 6, [3]),
    Continued([3], []),
]


def made(*changes: dict) -> Denoiser:
    denoiser = Denoiser(build(QUICK | {"data.corpus": "stdlib"}, *changes).model)
    initialise(denoiser, 0)
    for parameter in denoiser.parameters():  # an untrained model hardly prefers anything
        parameter.data.mul_(3)
    return denoiser.eval()


def by_all_masks(denoiser: Denoiser, asked: Continued) -> float:
    """-1/R sum over n of the mean over masks of n tokens of (R / n) sum CE: the bound without any drawing."""
    tokens, start, total = [*asked.context, *asked.tokens], len(asked.context), 0.0
    size = len(asked.tokens)
    for count in range(1, size + 1):
        sums = []
        for mask in itertools.combinations(range(start, start + size), count):
            row = torch.tensor([tokens])
            row[0, list(mask)] = denoiser.config.mask_id
            with torch.inference_mode():
                log_p = denoiser(row)[0][0].double().log_softmax(-1)
            sums.append(-sum(float(log_p[place, tokens[place]]) for place in mask))
        total += size / count * sum(sums) / len(sums)
    return -total / max(1, size)


def test_where_all_masks_can_be_asked_the_bound_is_that_of_their_enumeration() -> None:
    denoiser = made()
    for each, found in zip(ASKED, log_likelihoods(denoiser, ASKED, draws=31), strict=True):
        assert found.log_p == pytest.approx(by_all_masks(denoiser, each), rel=1e-5, abs=1e-9) and found.se == 0


def test_drawn_masks_tend_to_the_enumeration() -> None:
    denoiser = made()
    asked = Continued([1, 2], [9, 8, 7, 6, 5, 4, 3])  # 127 masks
    exact = by_all_masks(denoiser, asked)
    for seed in range(3):
        found = log_likelihoods(denoiser, [asked], draws=120, seed=seed, batch=120)[0]
        assert 0 < found.se < 0.2 * abs(exact) and abs(found.log_p - exact) < 4 * found.se
    assert log_likelihoods(denoiser, [asked], draws=127)[0].log_p == pytest.approx(exact, rel=1e-5)


def test_a_causal_models_is_the_sum_of_its_log_probabilities() -> None:
    denoiser = made(CAUSAL)
    for each, found in zip(ASKED, log_likelihoods(denoiser, ASKED), strict=True):
        total, greedy = 0.0, True
        for place, token in enumerate(each.tokens):
            seen = [denoiser.config.eos_id, *each.context, *each.tokens[:place]]
            with torch.inference_mode():
                log_p = denoiser(torch.tensor([seen]))[0][0, -1].double().log_softmax(-1)
            total, greedy = total + float(log_p[token]), greedy and int(log_p.argmax()) == token
        assert found.log_p == pytest.approx(total, rel=1e-5, abs=1e-9) and found.greedy == greedy


@pytest.mark.parametrize("changes", [{}, CAUSAL, {"model.router.kind": "expert_choice"}])
def test_a_batch_changes_nothing(changes: dict) -> None:
    denoiser = made(changes)
    one, many = (log_likelihoods(denoiser, ASKED, draws=8, batch=size) for size in (1, 64))
    for a, b in zip(one, many, strict=True):
        assert a.log_p == pytest.approx(b.log_p, rel=1e-5) and a.se == pytest.approx(b.se, rel=1e-3, abs=1e-9)
        assert a.greedy == b.greedy
    assert log_likelihoods(denoiser, ASKED[1:2], draws=8)[0].log_p == pytest.approx(one[1].log_p, rel=1e-5)


def test_answers_of_one_length_meet_the_same_masks() -> None:
    denoiser = made()
    for parameter in denoiser.layers.parameters():
        parameter.data.zero_()  # what is predicted of a token then depends on nothing else: only masks differ
    a, b = log_likelihoods(denoiser, [Continued([1], [5, 6] * 5), Continued([2, 2], [5, 6] * 5)], draws=8)
    assert a.log_p == pytest.approx(b.log_p, rel=1e-6) and a.se > 0
    other = log_likelihoods(denoiser, [Continued([1], [5, 6] * 5)], draws=8, seed=1)[0]
    assert other.log_p != a.log_p


def test_greedy_is_what_the_sampler_decodes() -> None:
    denoiser = made()
    decoded = sample(NetworkPredictor(denoiser), [[1, 2, 3]], Sampling(length=4), denoiser.config.mask_id)
    right = decoded.sequence(0).tolist()[3:]
    wrong = [*right[:3], (right[3] + 1) % 256]
    found = log_likelihoods(denoiser, [Continued([1, 2, 3], right), Continued([1, 2, 3], wrong)], draws=4)
    assert [each.greedy for each in found] == [True, False]


def test_the_uniform_prediction_costs_log_v_a_token() -> None:
    for changes in ({}, CAUSAL):
        denoiser = made(changes)
        denoiser.head.weight.data.zero_()
        found = log_likelihoods(denoiser, [Continued([1], [5, 6] * 5)], draws=7)[0]
        assert found.log_p == pytest.approx(-10 * math.log(denoiser.config.vocab_size), rel=1e-5)


def test_what_does_not_fit_is_refused() -> None:
    for changes in ({}, CAUSAL):
        denoiser = made({"model.max_positions": 32}, changes)
        assert log_likelihoods(denoiser, [Continued([1] * 22, [2] * 10)], draws=2)[0].log_p < 0
        with pytest.raises(UserError, match="max_positions=32"):
            log_likelihoods(denoiser, [Continued([1] * 23, [2] * 10)])
    with pytest.raises(UserError, match="draws=0"):
        log_likelihoods(made(), ASKED, draws=0)
