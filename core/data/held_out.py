"""Held-out sequences of a run by where they start, without reading them into tensors."""

import numpy as np

from core.config.run import RunConfig
from core.data.corpora import Corpus, load, parts_of
from core.data.mixtures import shares
from core.errors import UserError
from core.runtime.random_streams import numpy_stream


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
