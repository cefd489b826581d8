"""Exact match of a model's responses to a task, and their network calls."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from core.config.run import RunConfig
from core.data.tasks import TASKS, first_held_out, task_of
from core.data.tokenizers import load_tokenizer
from core.diffusion.autoregressive import sample_autoregressive
from core.diffusion.predictors import NetworkPredictor
from core.diffusion.sampler import sample
from core.diffusion.sampling import Sampled, Sampling, check_sampling
from core.model.transformer import Denoiser

BATCH = 64


@dataclass(frozen=True)
class TaskResult:
    """Of each held-out example, in order: whether the response was right, and its network calls. tokens: decoded in each."""

    right_N: np.ndarray
    nfe_N: np.ndarray
    tokens: int

    @property
    def exact_match(self) -> float:
        return float(self.right_N.mean())

    @property
    def tokens_per_call(self) -> float:
        return self.tokens * len(self.nfe_N) / float(self.nfe_N.sum())


def exact_match(config: RunConfig, denoiser: Denoiser, settings: Sampling, count: int) -> TaskResult:
    """Answer the first held-out prompts, in batches; a causal model is decoded token after token.

    A response ends at its first eos. What follows the decoded tokens is given as eos, up to the length that the model was
    trained at: shorter sequences than that it has never seen. Raises UserError for a run that was not trained on a task, and
    for too many prompts.
    """
    name = task_of(config)
    held, tokenizer = first_held_out(name, count), load_tokenizer(config.data.tokenizer)
    prompts = [tokenizer.encode(name, prompt.encode(), special=False).tolist() for prompt, _ in held]
    eos = tokenizer.vocabulary.eos
    assert eos is not None  # a corpus of text needs one
    right, nfe = [], []
    for first, sampled in _answers(config, denoiser, prompts, settings, eos):
        for index in range(len(sampled.tokens_BL)):
            prompt = prompts[first + index]
            response = sampled.sequence(index).tolist()[len(prompt) : len(prompt) + settings.length]
            ends = [place for place, token in enumerate(response) if token == eos]
            text = tokenizer.decode(response[: ends[0]] if ends else response)
            right.append(TASKS[name].correct(held[first + index][0], text))
        nfe.append(sampled.nfe_B.numpy())
    return TaskResult(np.array(right), np.concatenate(nfe), settings.length)


def _answers(
    config: RunConfig, denoiser: Denoiser, prompts: list[list[int]], settings: Sampling, eos: int
) -> Iterator[tuple[int, Sampled]]:
    """Batches of decoded prompts, and the index of each batch's first. An example's random numbers are its index's."""
    device = denoiser.embed.weight.device
    for first in range(0, len(prompts), BATCH):
        batch = prompts[first : first + BATCH]
        streams = range(first, first + len(batch))
        if config.model.causal:
            yield (
                first,
                sample_autoregressive(
                    denoiser,
                    batch,
                    settings.length,
                    temperature=settings.temperature,
                    seed=settings.seed,
                    streams=streams,
                ),
            )
            continue
        mask_id, whole = check_sampling(config.model, batch, settings), config.data.sequence_length
        canvases = [[*prompt, *[mask_id] * settings.length] for prompt in batch]
        canvases = [[*canvas, *[eos] * (whole - len(canvas))] for canvas in canvases]
        predictor, inside = NetworkPredictor(denoiser, settings.cache), replace(settings, length=0)
        aligned = config.model.block_length
        yield first, sample(predictor, canvases, inside, mask_id, streams=streams, device=device, aligned=aligned)
