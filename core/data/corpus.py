"""Corpora and their kinds: tokens to learn from and tokens held out, read by a function that a file registers.

`corpus` registers a function as a kind, KIND or KIND:ARGUMENT of data.corpus; `text` registers one that reads documents,
which data.tokenizer makes tokens of. Kinds that come with the package are in core.data.kinds.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial, update_wrapper
from typing import NamedTuple, Protocol, TypeAlias

import numpy as np

from core.data.documents import Documents
from core.data.shards import Shards
from core.data.splits import Origin
from core.data.synthetic import Source
from core.data.tokenizers import Vocabulary, load_tokenizer
from core.registry import Registry


class Part(NamedTuple):
    """One corpus of a mixture: its name, its share of the rows, its tokens to train on and held out, and its files."""

    name: str
    weight: float
    train: int
    validation: int
    origin: Origin = Origin()


@dataclass(frozen=True)
class Corpus:
    """Tokens to learn from and tokens held out.

    train_T, validation_T: (T,) token ids; both can be sliced, and may lie on disk. aligned: sequences start at
    multiples of the sequence length only.
    train_maskable_T, validation_maskable_T: (T,) bool, True in responses, for supervised fine-tuning; None: everywhere.
    rows: sequences that make one example: 2 for a chosen and a rejected response to one prompt.
    train_segments_T, validation_segments_T: (T,) int16, where sequences are packed: 0 for filling, else which of a
    sequence's conversations the token is of, from 1 on.
    parts: of a mixture, whose tokens lie one part after the other; empty for a single corpus.
    origin: which files it is from, of a single corpus.
    source, entropy: where the tokens' distribution is known, and its entropy in nats per token; else None.
    bytes_per_token: of held-out text; None where tokens are no text.
    fingerprint: equal only for equal tokens in equal order; runs of different fingerprints are not compared.
    """

    train_T: np.ndarray | Shards
    validation_T: np.ndarray | Shards
    fingerprint: str
    vocabulary: Vocabulary
    aligned: bool = False
    rows: int = 1
    source: Source | None = None
    entropy: float | None = None
    bytes_per_token: float | None = None
    train_maskable_T: np.ndarray | None = None
    validation_maskable_T: np.ndarray | None = None
    train_segments_T: np.ndarray | None = None
    validation_segments_T: np.ndarray | None = None
    parts: tuple[Part, ...] = ()
    origin: Origin = Origin(fixed=True)  # noqa: RUF009  (frozen)


class Reading(NamedTuple):
    """Fields of core.config.run.DataConfig that say how a corpus is read."""

    tokenizer: str = "bytes"
    sequence_length: int = 128
    packing: bool = False
    chat_template: str = "roles"
    held_out_share: float | None = None


# Reads a corpus. The text is of its name, behind the colon. Raises UserError where it can't.
ReadsCorpus: TypeAlias = Callable[[str, Reading], Corpus]


class ReadsDocuments(Protocol):
    """Reads documents, of which about a share is held out; None: a tenth. Raises UserError where it can't."""

    def __call__(self, argument: str, share: float | None = None) -> Documents: ...


@dataclass(frozen=True)
class CorpusKind:
    """A kind of corpus.

    documents: reads its text, of a corpus of text. responses: it has prompts and responses; pairs: two responses to each
    prompt. tokenized: it is tokens already, without data.tokenizer. templated: data.chat_template writes its conversations.
    """

    name: str
    implementation: ReadsCorpus
    documents: ReadsDocuments | None = None
    responses: bool = False
    pairs: bool = False
    tokenized: bool = False
    templated: bool = False


CORPORA: Registry[CorpusKind] = Registry("data.corpus", folder="core.data.kinds")


def corpus(name: str, **traits: bool) -> Callable[[ReadsCorpus], ReadsCorpus]:
    """Register a function as a kind of corpus. traits: fields of CorpusKind."""

    def register(read: ReadsCorpus) -> ReadsCorpus:
        CORPORA.add(CorpusKind(name, read, **traits))  # type: ignore[arg-type]
        return read

    return register


def text(name: str) -> Callable[[ReadsDocuments], ReadsDocuments]:
    """Register a function that reads documents as a kind of corpus of text."""

    def register(read: ReadsDocuments) -> ReadsDocuments:
        CORPORA.add(CorpusKind(name, update_wrapper(partial(_of_text, name, read), read), documents=read))
        return read

    return register


def text_kinds() -> dict[str, ReadsDocuments]:
    """The kinds of corpora of text, each with what reads its documents."""
    return {kind.name: kind.documents for kind in CORPORA.entries() if kind.documents is not None}


def _of_text(name: str, read: ReadsDocuments, argument: str, reading: Reading) -> Corpus:
    documents, tokenizer = read(argument, reading.held_out_share), load_tokenizer(reading.tokenizer)
    train_T, validation_T = tokenizer.join(documents.train), tokenizer.join(documents.validation)
    # Bytes are their own ids; of others the ids count, whatever the tokenizer and its library made of the text.
    ids = "" if reading.tokenizer == "bytes" else f"+{_digest(train_T, validation_T)}"
    return Corpus(
        train_T=train_T,
        validation_T=validation_T,
        fingerprint=f"{name}:{documents.digest}{ids}",
        vocabulary=tokenizer.vocabulary,
        bytes_per_token=sum(map(len, documents.validation.values())) / len(validation_T),
        origin=documents.origin,
    )


def _digest(*arrays: np.ndarray) -> str:
    digest = hashlib.sha256(",".join(str(len(array)) for array in arrays).encode())
    for array in arrays:
        digest.update(array.astype("<u4").tobytes())
    return digest.hexdigest()[:16]
