import itertools
from dataclasses import replace

import pytest

from core.config.loading import build
from core.data.corpora import likelihood, load
from core.records.designs import Likelihood
from core.records.likelihood_kind import across, incomparable, listed

AUTOREGRESSIVE = {"objective.kind": "autoregressive", "model.causal": True}
VRPO = {"objective.kind": "vrpo", "trainer.initial_weights": "x", "data.corpus": "preferences:x.jsonl"}


@pytest.mark.parametrize(
    ("settings", "kind", "of"),
    [
        ({}, "bound", "sequences"),
        (AUTOREGRESSIVE, "exact", "sequences"),
        ({"model.block_length": 4}, "bound", "sequences"),
        ({"model.shifted": True, "objective.weighting": "cart"}, "bound", "sequences"),
        ({"model.router.kind": "expert_choice"}, "bound", "sequences"),
        ({"objective.kind": "sft", "data.corpus": "task:copy"}, "bound", "responses"),
        (AUTOREGRESSIVE | {"data.corpus": "instructions:x.jsonl"}, "exact", "responses"),
        ({"objective.kind": "sft", "data.corpus": "0.7*task:copy + 0.3*task:reverse"}, "bound", "responses"),
        ({"objective.kind": "sft", "data.corpus": "2*instructions:a.jsonl + 1*task:copy"}, "bound", "responses"),
        ({"data.corpus": "0.7*stdlib + 0.3*text:x"}, "bound", "sequences"),
        (VRPO, "tuned", "responses"),
    ],
)
def test_each_kind_of_training_has_its_kind_of_number(settings: dict, kind: str, of: str) -> None:
    assert likelihood(build(settings)) == Likelihood(kind, of, "bytes")


@pytest.mark.parametrize("corpus", ["stdlib", "task:copy", "1*task:copy + 2*task:reverse", "markov:2"])
def test_responses_are_said_of_what_the_loaded_corpus_marks(corpus: str) -> None:
    config = build({"data.corpus": corpus, "data.sequence_length": 64})
    marks = load(config.data).train_maskable_T is not None
    assert (likelihood(config).of == "responses") == marks


def test_what_is_compared_with_what() -> None:
    bound = likelihood(build({}))
    exact, tuned = replace(bound, kind="exact"), replace(bound, kind="tuned", of="responses")
    assert incomparable(bound, exact) is None and incomparable(bound, bound) is None
    assert "isn't one of the text's likelihood" in incomparable(tuned, bound)
    assert "isn't compared" in incomparable(bound, replace(bound, of="responses"))
    assert "tokens of bytes aren't those of t.json" in incomparable(bound, replace(bound, tokenizer="t.json"))
    for (one, two), difference in itertools.product(itertools.product((bound, exact), repeat=2), (-1.0, 1.0)):
        proves_nothing = one != two and (exact is (one if difference < 0 else two))
        assert across(one, two, difference) == proves_nothing


def test_the_line_says_which_numbers_are_of_which_kind() -> None:
    bound = likelihood(build({}))
    assert listed({"a": bound, "b": bound}) == ""
    line = listed({"a": bound, "b": replace(bound, kind="exact"), "c": bound})
    assert line.startswith("a, c: bounds, at or above their model's negative log-likelihood. b: exact negative")
    assert "A bound against an exact likelihood: a lower number of the exact one doesn't prove" in line
    assert "of responses" in listed({"a": bound, "b": replace(bound, of="responses")})
