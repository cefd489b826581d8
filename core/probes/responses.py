"""Responses to prompts as text, by whichever way a model is decoded, cut at what ends them; and how many are right."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from core.config.run import RunConfig
from core.data.tasks import TASKS, first_held_out, task_of
from core.data.tokenizers import Tokenizer, load_tokenizer
from core.diffusion.autoregressive import decode_autoregressive
from core.diffusion.predictors import NetworkPredictor
from core.diffusion.sampler import collect, decode, sample
from core.diffusion.sampling import Fixed, Sampled, Sampling, check_autoregressive, check_sampling
from core.errors import UserError, require
from core.model.transformer import Denoiser

TASK_BATCH = 64
LOOK_EVERY = 16  # tokens of a causal model, between looks whether all of a batch have ended


class Asked(NamedTuple):
    """A prompt, the tokens that its response may have, what ends it, and how far from the likeliest tokens it may stray."""

    prompt: Sequence[int]
    length: int
    until: tuple[str, ...] = ()
    temperature: float = 0.0


@dataclass(frozen=True)
class Responder:
    """Decoding settings of an evaluation: those of core.diffusion.sampling, but for length, steps and temperature.

    tokens_per_call: fixed by each network call, where there is no threshold. batch: prompts at once, which changes nothing
    but rounding: a response's random numbers are named after its place among all that was asked.
    """

    denoiser: Denoiser
    tokenizer: Tokenizer
    settings: Sampling = Sampling()  # noqa: RUF009  (frozen)
    tokens_per_call: int = 1
    batch: int = 16

    def respond(self, asked: Sequence[Asked], *, tell: Callable[[int], object] = lambda count: None) -> list[str]:
        """Each response as text, up to the first eos and the first string of `until`, which are left out.

        A batch is decoded no further once all of its responses have ended: later blocks don't change earlier ones. tell:
        called with the size of each batch that is done. Raises UserError for sequences that the model has no positions for.
        """
        require(self.batch >= 1, f"batch={self.batch} must be at least 1")
        texts = [""] * len(asked)
        for part in self._batches(asked):
            one = asked[part[0]]
            prompts, settings = [asked[index].prompt for index in part], self.settings_for(one)
            for index, text in zip(part, self._answers(prompts, settings, part, one), strict=True):
                texts[index] = text
            tell(len(part))
        return texts

    def settings_for(self, asked: Asked) -> Sampling:
        """Settings for one prompt: a length that blocks don't divide is rounded up to the next that they do."""
        length = asked.length
        if self.denoiser.config.causal:
            return replace(self.settings, length=length, block_length=None, temperature=asked.temperature)
        size = min(self.settings.block_length or length, length)
        whole = -(-length // size) * size
        steps = None if self.settings.threshold is not None else max(whole // size, whole // self.tokens_per_call)
        return replace(self.settings, length=whole, block_length=size, steps=steps, temperature=asked.temperature)

    def _batches(self, asked: Sequence[Asked]) -> Iterator[list[int]]:
        """Indices of what is decoded together: what is asked alike but for the prompt, of like length."""
        groups: dict[tuple[object, ...], list[int]] = {}
        for index, each in enumerate(asked):
            groups.setdefault(each[1:], []).append(index)
        for members in groups.values():
            members.sort(key=lambda index: (-len(asked[index].prompt), index))
            for first in range(0, len(members), self.batch):
                yield members[first : first + self.batch]

    def _events(self, prompts: Sequence[Sequence[int]], settings: Sampling, streams: Sequence[int]) -> Iterator[Fixed]:
        model = self.denoiser.config
        if model.causal or model.mask_id is None:
            check_autoregressive(model, prompts, settings.length)
            return _autoregressive_events(self.denoiser, prompts, settings, streams)
        mask_id = check_sampling(model, prompts, settings)
        predictor, device = NetworkPredictor(self.denoiser, settings.cache), self.denoiser.embed.weight.device
        return decode(predictor, prompts, settings, mask_id, streams=streams, device=device)

    def _answers(
        self, prompts: Sequence[Sequence[int]], settings: Sampling, streams: Sequence[int], asked: Asked
    ) -> list[str]:
        """A batch's responses. Each is cut where it is first seen to have ended, so that it doesn't matter who else is in the
        batch and keeps it going."""
        seen: list[Fixed] = []
        done: dict[int, str] = {}
        fixed, causal = 0, self.denoiser.config.causal
        look = len(prompts) * (LOOK_EVERY if causal else settings.block_length or settings.length)
        for event in self._events(prompts, settings, streams):
            seen.append(event)
            fixed += len(event.token_M)
            if fixed % look == 0:  # the end of a block, of all sequences
                found = self._texts(collect(iter(seen), prompts, settings.length), prompts, asked)
                done = {row: text for row, (text, ended) in enumerate(found) if ended} | done
                if len(done) == len(prompts):
                    break
        found = self._texts(collect(iter(seen), prompts, settings.length), prompts, asked)
        return [done.get(row, text) for row, (text, _) in enumerate(found)]

    def _texts(self, sampled: Sampled, prompts: Sequence[Sequence[int]], asked: Asked) -> list[tuple[str, bool]]:
        """Each response as far as it is decoded without a gap, and whether it has ended."""
        texts = []
        for row, start in enumerate(map(len, prompts)):
            step_R = sampled.step_BL[row, start : int(sampled.length_B[row])].tolist()
            gap = next((place for place, step in enumerate(step_R) if step < 0), len(step_R))
            tokens = sampled.tokens_BL[row, start : start + min(gap, asked.length)].tolist()
            texts.append(self.cut(tokens, asked.until))
        return texts

    def cut(self, tokens: Sequence[int], until: Sequence[str]) -> tuple[str, bool]:
        """Tokens as text up to what ends it, and whether anything did."""
        eos, tokens = self.denoiser.config.eos_id, list(tokens)
        ended = eos in tokens
        text = self.tokenizer.decode(tokens[: tokens.index(eos)] if ended else tokens)  # type: ignore[arg-type]
        places = [place for place in (text.find(each) for each in until if each) if place >= 0]
        return (text[: min(places)], True) if places else (text, ended)

    def fit(self, prompt: Sequence[int], length: int, context: int) -> tuple[Sequence[int], bool]:
        """The end of a prompt that leaves room for a response of `length` within `context` tokens, and whether that isn't all
        of it. Raises UserError where there is no room for any."""
        whole = self.settings_for(Asked(prompt, length)).length
        if whole >= context:
            raise UserError(
                f"a response of {whole} tokens leaves no room for a prompt within {context}: ask for fewer with --length"
            )
        return prompt[-(context - whole) :], len(prompt) > context - whole


def _autoregressive_events(
    denoiser: Denoiser, prompts: Sequence[Sequence[int]], settings: Sampling, streams: Sequence[int]
) -> Iterator[Fixed]:
    length, temperature, seed = settings.length, settings.temperature, settings.seed
    return decode_autoregressive(denoiser, prompts, length, temperature=temperature, seed=seed, streams=streams)


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
    for first, sampled in _decoded_batches(config, denoiser, prompts, settings, eos):
        for index in range(len(sampled.tokens_BL)):
            prompt = prompts[first + index]
            response = sampled.sequence(index).tolist()[len(prompt) : len(prompt) + settings.length]
            ends = [place for place, token in enumerate(response) if token == eos]
            text = tokenizer.decode(response[: ends[0]] if ends else response)
            right.append(TASKS[name].correct(held[first + index][0], text))
        nfe.append(sampled.nfe_B.numpy())
    return TaskResult(np.array(right), np.concatenate(nfe), settings.length)


def _decoded_batches(
    config: RunConfig, denoiser: Denoiser, prompts: list[list[int]], settings: Sampling, eos: int
) -> Iterator[tuple[int, Sampled]]:
    """Batches of decoded prompts, and the index of each batch's first. An example's random numbers are its index's."""
    device = denoiser.embed.weight.device
    for first in range(0, len(prompts), TASK_BATCH):
        batch = prompts[first : first + TASK_BATCH]
        streams = range(first, first + len(batch))
        if config.model.causal:
            events = _autoregressive_events(denoiser, batch, settings, streams)
            yield first, collect(events, batch, settings.length)
            continue
        mask_id, whole = check_sampling(config.model, batch, settings), config.data.sequence_length
        canvases = [[*prompt, *[mask_id] * settings.length] for prompt in batch]
        canvases = [[*canvas, *[eos] * (whole - len(canvas))] for canvas in canvases]
        predictor, inside = NetworkPredictor(denoiser, settings.cache), replace(settings, length=0)
        aligned = config.model.block_length
        yield first, sample(predictor, canvases, inside, mask_id, streams=streams, device=device, aligned=aligned)
