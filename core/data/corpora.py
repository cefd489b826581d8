"""Corpora by name: loads, checks and describes what data.corpus names, a mixture too, and picks its held-out sequences."""

from collections.abc import Iterable
from functools import lru_cache

import numpy as np

from core.config.data import DataConfig
from core.config.run import RunConfig
from core.data.corpus import CORPORA, Corpus, Part, Reading
from core.data.mixtures import blend, kinds, parse, shares
from core.data.splits import check_share, sentence
from core.errors import UserError
from core.records.designs import Likelihood
from core.runtime.random_streams import numpy_stream


def load(config: DataConfig) -> Corpus:
    """The corpus that a config names, cached within the process.

    Raises UserError when the name is unknown, the files can't be used, or there is too little in them.
    """
    templated = any(kind in CORPORA and CORPORA[kind].templated for kind in kinds(config.corpus))
    if config.chat_template != DataConfig.chat_template and not templated:
        raise UserError(
            f"data.chat_template={config.chat_template} means nothing to data.corpus={config.corpus}: leave it out, or use "
            "instructions:FILE.jsonl"
        )
    corpus = _load(config.corpus, Reading(*(getattr(config, name) for name in Reading._fields)))
    parts = parts_of(config, corpus)
    mixed = bool(corpus.parts) and not all(part.origin.fixed for part in parts)
    for part in parts:
        check_share(part.name, part.train, part.validation, part.origin, config.held_out_share, mixed=mixed)
    if config.validation_sequences < len(parts):
        raise UserError(
            f"data.validation_sequences={config.validation_sequences} is too few for the {len(parts)} parts of data.corpus"
        )
    for part, wanted in zip(parts, shares([part.weight for part in parts], config.validation_sequences), strict=True):
        _check_room(config, part, wanted, corpus.rows)
    return corpus


def parts_of(config: DataConfig, corpus: Corpus) -> tuple[Part, ...]:
    """A mixture's parts; a single corpus as one of its own."""
    return corpus.parts or (Part(config.corpus, 1.0, len(corpus.train_T), len(corpus.validation_T), corpus.origin),)


def describe(configs: Iterable[DataConfig]) -> list[str]:
    """A line for each corpus, or part of one: how many tokens train, how many are held out, and which files they are from."""
    lines = (
        sentence(part.name, part.train, part.validation, part.origin)
        for config in dict.fromkeys(configs)
        for part in parts_of(config, load(config))
    )
    return list(dict.fromkeys(lines))


def _check_room(config: DataConfig, part: Part, wanted: int, rows: int) -> None:
    for name, tokens in (("training", part.train), ("validation", part.validation)):
        if tokens < 2 * config.sequence_length:
            raise UserError(
                f"data.corpus={part.name} has only {tokens} {name} tokens: "
                f"too few for data.sequence_length={config.sequence_length}; use more text or shorter sequences"
            )
    available = part.validation // (rows * config.sequence_length)
    if wanted > available:
        share = "" if part.name == config.corpus else f", {wanted} of them of a part"
        raise UserError(
            f"data.validation_sequences={config.validation_sequences}{share}, but data.corpus={part.name} holds out only "
            f"{available} {'pairs of ' if rows > 1 else ''}sequences of length {config.sequence_length}"
        )


def likelihood(config: RunConfig) -> Likelihood:
    """Kind of likelihood that a config's validation NELBO is. Raises UserError for an unknown kind of corpus."""
    # Of a mixture all parts have responses, or none.
    responses = any(CORPORA[kind].responses for kind in kinds(config.data.corpus))
    return Likelihood(
        config.objective.traits.likelihood, "responses" if responses else "sequences", config.data.tokenizer
    )


def check_held_out(config: RunConfig, count: int) -> None:
    """Refuse more sequences than are held out, and packed ones, which only training knows to keep apart."""
    if config.data.packing:
        raise UserError(
            "data.packing=true: a sequence is several conversations; set data.packing=false to see them singly"
        )
    held_out_starts(config, load(config.data), count)


def held_out_starts(config: RunConfig, corpus: Corpus, count: int) -> tuple[list[int], np.ndarray | None]:
    """Starts of the held-out sequences, and the part of a mixture that each is of, (N,) int64: in proportion to the weights.

    Raises UserError where fewer are held out.
    """
    length, parts, first = config.data.sequence_length, parts_of(config.data, corpus), 0
    starts: list[int] = []
    domains: list[int] = []
    for index, (part, wanted) in enumerate(zip(parts, shares([p.weight for p in parts], count), strict=True)):
        available = part.validation // length
        if wanted > available:
            raise UserError(
                f"data.corpus={part.name} holds out only {available} sequences of length {length}, fewer than {wanted}"
            )
        names = (part.name,) if corpus.parts else ()
        chosen = numpy_stream(config.seed, "validation sequences", *names).permutation(available)[:wanted]
        starts += [first + int(i) * length for i in chosen]
        domains += [index] * wanted
        first += part.validation
    if not corpus.parts:
        return starts, None
    order = numpy_stream(config.seed, "validation order").permutation(len(starts))  # each batch of all parts
    return [starts[i] for i in order], np.array(domains)[order]


@lru_cache(maxsize=4)
def _load(name: str, reading: Reading) -> Corpus:
    if mixed := parse(name):
        # Shards beside text need the text's tokens to be bytes, and aren't refused a tokenizer that is the text's.
        text = any(part.partition(":")[0] != "tokens" for _, part in mixed)
        own = reading._replace(tokenizer="bytes") if text else reading
        corpora = [_load(part, own if part.startswith("tokens:") else reading) for _, part in mixed]
        return blend(name, [weight for weight, _ in mixed], [part for _, part in mixed], corpora)
    kind, _, argument = name.partition(":")
    if kind not in CORPORA:
        raise UserError(
            f"data.corpus='{name}' is unknown: use one of {', '.join(CORPORA)} (some take a path, as in text:PATH)"
        )
    if CORPORA[kind].tokenized and reading.tokenizer != "bytes":
        raise UserError(
            f"data.tokenizer={reading.tokenizer} goes with text; data.corpus={name} is tokens already: leave it out"
        )
    return CORPORA[kind].implementation(argument, reading)
