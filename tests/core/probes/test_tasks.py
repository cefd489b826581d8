"""Exact match against a model that can be known: one that was taught nothing, and one that is told the answers."""

import pytest
import torch

from core.config.loading import build
from core.data.tasks import examples
from core.data.tokens import EOS_ID
from core.diffusion.sampling import Sampling
from core.errors import UserError
from core.model.transformer import Denoiser, initialise
from core.probes import tasks
from core.probes.tasks import exact_match
from tests.core.training.test_run import QUICK

TASK = QUICK | {"data.corpus": "task:copy"}


def knowing(monkeypatch, wrong: set[int]) -> None:
    """Let the predictor be one that knows the answers, but to some prompts."""
    held = examples("copy").held_out

    def predict(canvas):
        rows = []
        for tokens_L, position_W, wanted_W in zip(canvas.tokens_BL, canvas.position_BW, canvas.wanted_BW, strict=True):
            prompt = bytes(tokens_L[: tokens_L.tolist().index(ord(">")) + 1].tolist()).decode()
            index = next(i for i, pair in enumerate(held) if pair[0] == prompt)
            answer = [*("wrong" if index in wrong else held[index][1]).encode(), *[EOS_ID] * 20]
            rows += [answer[int(p) - len(prompt)] for p in position_W[wanted_W]]
        return 20.0 * torch.nn.functional.one_hot(torch.tensor(rows), 259)

    monkeypatch.setattr(tasks, "NetworkPredictor", lambda denoiser, cache: predict)


def test_right_answers_are_counted_and_calls_with_them(monkeypatch) -> None:
    config = build(TASK)
    knowing(monkeypatch, {0, 7, 70})
    found = exact_match(config, Denoiser(config.model), Sampling(length=12, threshold=0.9), 100)
    assert [i for i, right in enumerate(found.right_N) if not right] == [0, 7, 70] and found.exact_match == 0.97
    assert found.nfe_N.tolist() == [1] * 100 and found.tokens_per_call == 12
    slow = exact_match(config, Denoiser(config.model), Sampling(length=12, block_length=4, steps=6), 10)
    assert slow.nfe_N.tolist() == [6] * 10 and slow.tokens_per_call == 2 and slow.exact_match == 0.8


def test_an_untaught_model_knows_nothing_and_a_causal_one_is_asked_too() -> None:
    for changes in ({}, {"model.causal": True, "objective.kind": "autoregressive"}):
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
