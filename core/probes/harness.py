"""Our models as lm-eval asks them (extra `eval`): likelihoods by the NELBO or exactly, responses by our sampler."""

import statistics
from collections import Counter
from collections.abc import Sequence
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs
from tqdm import tqdm

from core.errors import UserError
from core.probes.likelihood import Continued, Likelihood, log_likelihoods
from core.probes.responses import Asked, Responder

LENGTH = 256  # tokens of a response whose task says nothing
CHUNK = 256  # continuations whose masks are held at once


class MaskedLM(LM):
    """A denoiser behind lm-eval's interface; a causal one too.

    responder: how it is decoded. draws: masks of a continuation. context: tokens of context and continuation together, longer
    contexts lose their beginning. length: tokens of a response (None: as its task says, else 256). temperature: None: as the
    task says, which is 0 where it doesn't say do_sample.
    """

    def __init__(
        self,
        responder: Responder,
        *,
        draws: int = 128,
        context: int | None = None,
        length: int | None = None,
        temperature: float | None = None,
    ) -> None:
        super().__init__()
        model = responder.denoiser.config
        self.responder, self.draws, self.length, self.temperature = responder, draws, length, temperature
        self.context = model.max_positions if context is None else context
        if not 1 <= self.context <= model.max_positions:
            raise UserError(f"--context {self.context} must lie in 1..model.max_positions={model.max_positions}")
        self.requests: Counter[str] = Counter()
        self.truncated: Counter[str] = Counter()
        self.standard_errors: list[float] = []

    def settings(self) -> dict[str, Any]:
        """Settings of an evaluation, for the record of results."""
        used = self.responder.settings
        return {
            "draws": self.draws,
            "context": self.context,
            "length": self.length,
            "block_length": used.block_length,
            "tokens_per_call": self.responder.tokens_per_call,
            "remasking": used.remasking,
            "threshold": used.threshold,
            "temperature": self.temperature,
            "seed": used.seed,
            "batch": self.responder.batch,
        }

    def counts(self) -> dict[str, Any]:
        """Number of contexts that lost their beginning, by kind of request; the mean standard error over masks, in nats."""
        return {
            "requests": dict(self.requests),
            "truncated": {kind: self.truncated[kind] for kind in self.requests},
            "mean_standard_error": statistics.fmean(self.standard_errors) if self.standard_errors else None,
        }

    def loglikelihood(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """log p of each continuation given its context, in nats, and whether it is what greedy decoding gives."""
        asked = [self._continued(*request.args) for request in requests]
        return [(each.log_p, each.greedy) for each in self._likelihoods("loglikelihood", asked)]

    def loglikelihood_rolling(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[float]:
        """log p of each text, in nats: the sum over windows of as many tokens as there is room for, each given the last token
        before it, as lm-eval's disjoint windows are."""
        windows, owners = [], []
        for owner, request in enumerate(requests):
            tokens = self._encode(request.args[0])
            windows.append(Continued([], tokens[: self.context]))
            owners.append(owner)
            size = max(1, self.context - 1)
            for first in range(self.context, len(tokens), size):
                before = tokens[first - 1 : first] if self.context > 1 else []
                windows.append(Continued(before, tokens[first : first + size]))
                owners.append(owner)
        sums = [0.0] * len(requests)
        for owner, found in zip(owners, self._likelihoods("loglikelihood_rolling", windows), strict=True):
            sums[owner] += found.log_p
        return sums

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        """A response to each context, cut at its task's `until` strings; its random numbers are named after its place."""
        with tqdm(total=len(requests), desc="generate_until", disable=None) as bar:
            return self.responder.respond([self._asked(*request.args) for request in requests], tell=bar.update)

    def _asked(self, context: str, options: dict[str, Any]) -> Asked:
        said = normalize_gen_kwargs(options, LENGTH)
        strange = [name for name in ("top_p", "top_k", "num_beams") if said.get(name) not in (None, 0, 1, 1.0)]
        temperature = said.get("temperature", 0.0) if self.temperature is None else self.temperature
        if strange and temperature > 0:
            raise UserError(
                f"the task samples with {strange[0]}={said[strange[0]]}, which our sampler hasn't: say --temperature 0"
            )
        length = int(said["max_gen_toks"] if self.length is None else self.length)
        prompt, cut = self.responder.fit(self._encode(context), length, self.context)
        self.requests["generate_until"] += 1
        self.truncated["generate_until"] += cut
        return Asked(prompt, length, tuple(handle_stop_sequences(said["until"], None)), float(temperature))

    def _likelihoods(self, kind: str, asked: Sequence[Continued]) -> list[Likelihood]:
        fitting = []
        for each in asked:
            room = self.context - len(each.tokens)
            fitting.append(Continued(each.context[-room:] if room > 0 else [], each.tokens[-self.context :]))
        denoiser, seed, batch = self.responder.denoiser, self.responder.settings.seed, self.responder.batch
        found: list[Likelihood] = []
        with tqdm(total=len(asked), desc=kind, disable=None) as bar:  # None: where nobody watches
            for first in range(0, len(asked), CHUNK):
                part = fitting[first : first + CHUNK]
                found += log_likelihoods(denoiser, part, draws=self.draws, seed=seed, batch=batch)
                bar.update(len(part))
        self.requests[kind] += len(asked)
        self.truncated[kind] += sum(a != b for a, b in zip(asked, fitting, strict=True))
        self.standard_errors += [each.se for each in found]
        return found

    def _continued(self, context: str, continuation: str) -> Continued:
        """Tokens of a context and its continuation as they are when written together, spaces between the two with the latter
        (as lm-eval's TemplateLM has it)."""
        kept = context.rstrip()
        before = self._encode(kept)
        return Continued(before, self._encode(kept + context[len(kept) :] + continuation)[len(before) :])

    def _encode(self, text: str) -> list[int]:
        if not text:
            return []
        # A task's text: names of special tokens in it are text, as everywhere that text isn't from a chat template.
        return self.responder.tokenizer.encode("a request", text.encode(), special=False).tolist()
