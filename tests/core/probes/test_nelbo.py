"""Minimal pairs: against the enumeration of all masks, a causal model's own likelihood, and a model that knows nothing."""

import math

import numpy as np
import pytest

from core.config.loading import build
from core.config.run import RunConfig
from core.data.tasks import TASKS, examples, spoiled
from core.data.tokenizers import ByteTokenizer
from core.errors import UserError
from core.model.transformer import Denoiser
from core.probes.likelihood import Continued, log_likelihoods
from core.probes.nelbo import minimal_pairs
from core.runtime.random_streams import numpy_stream
from tests.core.data.test_tasks import NAMES
from tests.core.probes.test_likelihood import by_all_masks, made
from tests.core.training.test_run import CAUSAL, QUICK

EOS_ID = ByteTokenizer.vocabulary.eos
TASK = QUICK | {"data.corpus": "task:modular", "objective.kind": "sft", "data.sequence_length": 14}


def taught(changes: dict | None = None) -> tuple[RunConfig, Denoiser]:
    return build(TASK, changes or {}), made(TASK, changes or {})


def first_pair() -> tuple[Continued, Continued]:
    """The first held-out pair, right and wrong, filled up with eos."""
    prompt, right = examples("modular").held_out[0]
    wrong = spoiled("modular", prompt, right, numpy_stream(0, "pairs", 0))
    room = 14 - len(prompt)
    return tuple(Continued(list(prompt.encode()), [*side.encode(), *[EOS_ID] * room][:room]) for side in (right, wrong))


@pytest.mark.parametrize("name", NAMES)
def test_a_spoiled_response_is_wrong_by_one_symbol(name: str) -> None:
    for index, (prompt, right) in enumerate(examples(name).held_out[:40]):
        wrong = spoiled(name, prompt, right, np.random.default_rng(index))
        assert len(wrong) == len(right) and sum(a != b for a, b in zip(right, wrong, strict=True)) == 1
        assert TASKS[name].correct(prompt, right) and not TASKS[name].correct(prompt, wrong)


def test_the_margin_is_that_of_all_masks() -> None:
    config, denoiser = taught()
    right, wrong = (by_all_masks(denoiser, each) for each in first_pair())
    found = minimal_pairs(config, denoiser, 1, draws=4000)
    assert abs(found.margin_N[0] - (right - wrong)) < 4 * found.se_N[0] + 1e-4
    assert found.se_N[0] < 0.2 * abs(right - wrong)


def test_a_causal_models_margin_is_its_log_likelihood() -> None:
    config, denoiser = taught(CAUSAL)
    right, wrong = (each.log_p for each in log_likelihoods(denoiser, first_pair()))
    found = minimal_pairs(config, denoiser, 1)
    assert found.margin_N[0] == pytest.approx(right - wrong, abs=1e-4) and found.se_N[0] == 0


def test_one_that_was_taught_nothing_has_no_preference() -> None:
    config, denoiser = taught()
    found = minimal_pairs(config, denoiser, 100, draws=8)
    assert abs(found.preferred - 0.5) < 4 * math.sqrt(0.25 / 100)
    again = minimal_pairs(config, denoiser, 10, draws=8)
    assert np.allclose(found.margin_N[:10], again.margin_N)


def test_what_cant_be_asked_is_refused() -> None:
    config, denoiser = taught()
    with pytest.raises(UserError, match="is no task"):
        minimal_pairs(build(QUICK), denoiser, 5)
    with pytest.raises(UserError, match="task:modular holds out"):
        minimal_pairs(config, denoiser, 99_999)
    with pytest.raises(UserError, match="draws must be at least 1"):
        minimal_pairs(config, denoiser, 1, draws=0)
