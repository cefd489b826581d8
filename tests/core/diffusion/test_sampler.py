"""The sampler against LLaDA's loop, against exact posteriors, and in batches."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from core.config.model import ModelConfig, RouterConfig
from core.config.presets import preset
from core.data.synthetic import HiddenMarkovSource, MarkovSource, Source, TreeSource
from core.diffusion.predictors import NetworkPredictor, from_function
from core.diffusion.reference_llada import generate
from core.diffusion.sampler import collect, decode, sample
from core.diffusion.sampling import Predict, Sampling, check_sampling
from core.errors import UserError
from core.model.transformer import Denoiser
from core.runtime.random_streams import numpy_stream
from tests.core.networks import network_of

MASK = 256
SMALL = ModelConfig(
    hidden_size=32, num_layers=2, num_heads=2, head_dim=16, num_experts=4, top_k=2, expert_width=16, init_std=0.3
)
PROMPTS = [[1, 2, 3], [4, 5, 6, 7, 8], [9]]
LENGTH, DRAWS = 4, 4000
SOURCES: dict[str, Source] = {
    "markov": MarkovSource.random(numpy_stream(0, "markov"), states=3),
    "hmm": HiddenMarkovSource.random(numpy_stream(1, "hmm"), hidden=3, vocabulary=3),
    "tree": TreeSource.random(numpy_stream(0, "tree"), LENGTH, symbols=3, rules=2),
}


@pytest.fixture(scope="module")
def network() -> Denoiser:
    return network_of(SMALL)


def every_sequence(source: Source) -> np.ndarray:
    return np.array(list(itertools.product(range(source.vocabulary_size), repeat=LENGTH)))


def from_source(source: Source, mask_id: int) -> Predict:
    """The predictor that knows a source: the logarithm of its exact posterior, -inf for what is no token of it.

    mask_id: must not be one of the source's tokens.
    """

    def denoise(tokens_GL: torch.Tensor) -> torch.Tensor:
        masked_GL = (tokens_GL == mask_id).numpy()
        posterior_GLV = source.posterior(np.where(masked_GL, 0, tokens_GL.numpy()), masked_GL)
        padded_GLV = np.zeros((*posterior_GLV.shape[:2], max(mask_id + 1, posterior_GLV.shape[2])))
        padded_GLV[..., : posterior_GLV.shape[2]] = posterior_GLV
        return torch.from_numpy(padded_GLV).log()

    return from_function(denoise)


def counted(source: Source, settings: Sampling) -> np.ndarray:
    """How often each sequence came out of DRAWS."""
    drawn = sample(from_source(source, 3), [[]] * DRAWS, replace(settings, temperature=1.0, length=LENGTH), 3)
    code = drawn.tokens_BL.numpy() @ (source.vocabulary_size ** np.arange(LENGTH)[::-1])
    return np.bincount(code, minlength=source.vocabulary_size**LENGTH)


def p_value(observed: np.ndarray, probability: np.ndarray) -> float:
    """Of the chi-square test, with rare sequences taken together."""
    assert observed[probability <= 0].sum() == 0
    expected, rare = probability * observed.sum(), probability * observed.sum() < 8
    pairs = [np.append(values[~rare], values[rare].sum()) for values in (observed, expected)]
    pairs = [values[pairs[1] > 0] for values in pairs]
    return chisquare(pairs[0], pairs[1] * pairs[0].sum() / pairs[1].sum()).pvalue


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize(
    "settings",
    [
        Sampling(remasking="random"),
        Sampling(remasking="entropy"),
        Sampling(remasking="margin", length=LENGTH, block_length=2),
        Sampling(remasking="low_confidence", length=LENGTH, block_length=1),
    ],
    ids=["random", "entropy", "margin in blocks", "left to right"],
)
def test_one_token_a_step_samples_the_source(name: str, settings: Sampling) -> None:
    source = SOURCES[name]
    probability = np.exp(source.log_probability(every_sequence(source)))
    assert p_value(counted(source, settings), probability) > 1e-3


def test_one_step_samples_the_product_of_marginals_and_more_steps_lie_between() -> None:
    source = SOURCES["markov"]
    everything, hidden = every_sequence(source), np.ones((1, LENGTH), dtype=bool)
    marginal_LV = source.posterior(np.zeros((1, LENGTH), dtype=np.int64), hidden)[0]
    product = np.prod(marginal_LV[np.arange(LENGTH), everything], axis=1)
    truth = np.exp(source.log_probability(everything))
    at_once = counted(source, Sampling(length=LENGTH, steps=1, remasking="random"))
    assert p_value(at_once, product) > 1e-3 and p_value(at_once, truth) < 1e-12
    distance = [
        np.abs(counted(source, Sampling(length=LENGTH, steps=steps, remasking="random")) / DRAWS - truth).sum() / 2
        for steps in (1, 2, 4)
    ]
    assert distance[0] == pytest.approx(np.abs(product - truth).sum() / 2, abs=0.03)  # the bias that theory says
    assert distance[0] > 1.5 * distance[1] > 2 * distance[2]


def test_choosing_by_what_was_drawn_is_biased_towards_likely_sequences() -> None:
    """Low-confidence remasking looks at the drawn token: even one token a step doesn't sample the distribution."""
    source = SOURCES["markov"]
    everything = every_sequence(source)
    truth, drawn = np.exp(source.log_probability(everything)), counted(source, Sampling(remasking="low_confidence"))
    assert p_value(drawn, truth) < 1e-12
    assert (drawn / DRAWS * np.log(truth)).sum() > (truth * np.log(truth)).sum() + 0.05


@pytest.mark.parametrize("guidance", [0.0, 0.7])
@pytest.mark.parametrize(("block_length", "steps"), [(24, 7), (8, 12), (4, 24), (8, 3)])
def test_it_is_llada_s_loop_at_temperature_zero(network, block_length: int, steps: int, guidance: float) -> None:
    def logits(tokens_BL):
        return network(tokens_BL)[0].index_fill(-1, torch.tensor([MASK]), -1e9)  # the loop may choose it, and never end

    settings = Sampling(length=24, block_length=block_length, steps=steps, guidance=guidance)
    for prompt in PROMPTS[:2]:
        asked = {"steps": steps, "length": 24, "block_length": block_length, "guidance": guidance}
        expected = generate(logits, torch.tensor([prompt]), mask_id=MASK, **asked)
        for predict in (NetworkPredictor(network), from_function(logits)):
            assert sample(predict, [prompt], settings, MASK).tokens_BL.tolist() == expected.tolist()


@pytest.mark.parametrize(
    ("remasking", "changes"),
    [
        ("random", {"steps": 8}),
        ("entropy", {"steps": 5}),
        ("low_confidence", {"guidance": 0.5}),
        ("margin", {"threshold": 0.2, "low_threshold": 0.1}),
        *(
            ("low_confidence", {"cache": cache, "guidance": scale})
            for cache in ("prefix", "dual")
            for scale in (0.0, 0.5)
        ),
    ],
)
def test_a_sequence_is_decoded_alike_in_any_batch(network, remasking: str, changes: dict) -> None:
    settings = Sampling(length=12, block_length=4, remasking=remasking, temperature=1.0, seed=3, **changes)
    together = sample(NetworkPredictor(network, settings.cache), PROMPTS, settings, MASK)
    assert together.length_B.tolist() == [15, 17, 13]
    for index, prompt in enumerate(PROMPTS):
        alone = sample(NetworkPredictor(network, settings.cache), [prompt], settings, MASK, streams=[index])
        assert together.sequence(index).tolist() == alone.sequence(0).tolist()
        assert together.nfe_B[index] == alone.nfe_B[0]
    other = sample(NetworkPredictor(network, settings.cache), PROMPTS, replace(settings, seed=4), MASK)
    assert other.tokens_BL.tolist() != together.tokens_BL.tolist()


@pytest.mark.parametrize("kind", ["expert_choice", "ec_dlm", "random", "bin_bias", "adaptive_k"])
def test_routers_that_see_the_sequence_or_the_ratio_never_see_filling(kind: str) -> None:
    made = network_of(replace(SMALL, router=RouterConfig(kind=kind)), 1)
    settings = Sampling(length=8, block_length=4, steps=4)
    together = sample(NetworkPredictor(made), PROMPTS, settings, MASK)
    for index, prompt in enumerate(PROMPTS):
        expected = generate(
            lambda x: made(x)[0].index_fill(-1, torch.tensor([MASK]), -1e9),
            torch.tensor([prompt]), steps=4, length=8, block_length=4, mask_id=MASK,
        )  # fmt: skip
        assert together.sequence(index).tolist() == expected[0].tolist()


def test_tokens_are_told_as_they_are_fixed_and_fixed_once(network) -> None:
    settings = Sampling(length=12, block_length=4, steps=6, temperature=0.5)
    events = list(decode(NetworkPredictor(network), PROMPTS, settings, MASK))
    assert [event.step for event in events] == list(range(6))
    assert [event.block for event in events] == [0, 0, 1, 1, 2, 2]
    places = [
        pair for event in events for pair in zip(event.sequence_M.tolist(), event.position_M.tolist(), strict=True)
    ]
    assert len(places) == len(set(places)) == 36
    for event in events:
        start_M = torch.tensor([len(PROMPTS[index]) for index in event.sequence_M])
        assert ((event.position_M - start_M) // 4 == event.block).all()
        assert ((event.confidence_M > 0) & (event.confidence_M <= 1)).all()
    result = collect(iter(events), PROMPTS, 12)
    assert torch.equal(result.tokens_BL, sample(NetworkPredictor(network), PROMPTS, settings, MASK).tokens_BL)
    assert result.nfe_B.tolist() == [6, 6, 6] and result.tokens_per_call == 2
    assert result.sequence(1).tolist()[:5] == PROMPTS[1] and (result.step_BL[1, :5] == -1).all()


def test_masks_in_a_prompt_are_decoded_where_they_are() -> None:
    source = SOURCES["markov"]
    truth_NL = source.sample(3, 6, np.random.default_rng(0)).astype(np.int64)
    prompts = truth_NL.tolist()
    prompts[0][2] = prompts[1][0] = prompts[1][5] = prompts[2][4] = 3
    out = sample(from_source(source, 3), prompts, Sampling(length=0, temperature=1.0), 3)
    assert out.nfe_B.tolist() == [1, 2, 1] and (out.tokens_BL < 3).all()
    kept = torch.tensor(prompts) != 3
    assert torch.equal(out.tokens_BL[kept], torch.tensor(truth_NL)[kept])


def test_sure_sequences_need_fewer_calls_and_no_other_waits_change_them() -> None:
    def denoise(tokens_BL):
        """Sure of everything after a 1, of nothing after a 2."""
        sharp = torch.where(tokens_BL[:, :1] == 1, 20.0, 0.1)
        return sharp[..., None] * torch.nn.functional.one_hot(
            (torch.arange(tokens_BL.shape[1]) % 5).expand_as(tokens_BL), 6
        )

    out = sample(from_function(denoise), [[1], [2]], Sampling(length=8, block_length=4, threshold=0.95), 5)
    assert out.nfe_B.tolist() == [2, 8] and out.tokens_per_call == 16 / 10
    assert out.tokens_BL[0].tolist() == [1, 1, 2, 3, 4, 0, 1, 2, 3]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"block_length": 48}, "block_length=48 doesn't divide length=128: use 64"),
        ({"block_length": 32, "steps": 3}, "steps=3 are fewer than the 4 blocks of block_length=32"),
        ({"steps": 129}, "steps=129 exceed length=128"),
        ({"block_length": 0}, "block_length=0 must be at least 1"),
        ({"length": -1}, "length=-1 must not be negative"),
        ({"temperature": -0.1}, "temperature=-0.1 must not be negative"),
        ({"threshold": 1.2}, "threshold=1.2 must lie in"),
        ({"threshold": 0.5, "low_threshold": 0.6}, "low_threshold=0.6 must lie in"),
        ({"low_threshold": 0.6}, "means nothing without threshold"),
        ({"threshold": 0.9, "steps": 4}, "exclude each other"),
        ({"threshold": 0.9, "remasking": "entropy"}, "use low_confidence or margin"),
        ({"remasking": "best"}, "remasking=best must be one of low_confidence, random"),
    ],
)
def test_settings_that_cannot_be_are_one_line(changes: dict, expected: str) -> None:
    with pytest.raises(UserError, match=expected) as error:
        Sampling(**changes)
    assert len(str(error.value).splitlines()) == 1


def test_a_model_or_prompt_that_does_not_fit_is_refused() -> None:
    assert check_sampling(SMALL, PROMPTS, Sampling()) == MASK
    with pytest.raises(UserError, match=r"no mask token to decode .* it is autoregressive"):
        check_sampling(preset("qwen2_5_3b").model, PROMPTS, Sampling())
    with pytest.raises(UserError, match=r"prompt 1 has 9000 tokens, and model\.max_positions=8192 leave 0 for"):
        check_sampling(SMALL, [[1], [1] * 9000], Sampling())
    with pytest.raises(UserError, match=r"prompt 0 has token 300: tokens lie in 0\.\.258"):
        check_sampling(SMALL, [[300]], Sampling())
    with pytest.raises(UserError, match=r"cache=dual computes a part .*router\.kind=expert_choice"):
        NetworkPredictor(Denoiser(replace(SMALL, router=RouterConfig(kind="expert_choice"))), "dual")
