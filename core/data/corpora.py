"""Where tokens come from: the standard library's own sources, a folder of text, or a source of known entropy."""

import hashlib
import sysconfig
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from core.config import DataConfig
from core.data import tokens
from core.data.synthetic import MarkovSource
from core.errors import UserError
from core.streams import numpy_stream

VALIDATION_SHARE = 0.1
TEXT_SUFFIXES = {".txt", ".md", ".py", ".rst", ".tex"}
SKIPPED_FOLDERS = {"encodings", "test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
MARKOV_TOKENS = 1_000_000


@dataclass(frozen=True)
class Corpus:
    """Tokens to learn from and tokens held out.

    train_T, validation_T: (T,) uint16 token ids. aligned: sequences start at multiples of the sequence length only.
    entropy: exact entropy in nats per token where the source is known, else None.
    train_maskable_T, validation_maskable_T: (T,) bool, True in responses, for supervised fine-tuning; None: everywhere.
    fingerprint: equal only for equal tokens in equal order; runs of different fingerprints are not compared.
    """

    train_T: np.ndarray
    validation_T: np.ndarray
    fingerprint: str
    aligned: bool = False
    entropy: float | None = None
    train_maskable_T: np.ndarray | None = None
    validation_maskable_T: np.ndarray | None = None


def load(config: DataConfig) -> Corpus:
    """The corpus that a config names, cached within the process.

    Raises UserError when the name is unknown, the folder holds no text, or there is too little of it.
    """
    corpus = _load(config.corpus, config.sequence_length)
    for part, held in (("training", corpus.train_T), ("validation", corpus.validation_T)):
        if len(held) < 2 * config.sequence_length:
            raise UserError(
                f"data.corpus={config.corpus} has only {len(held)} {part} tokens: "
                f"too few for data.sequence_length={config.sequence_length}; use more text or shorter sequences"
            )
    available = len(corpus.validation_T) // config.sequence_length
    if config.validation_sequences > available:
        raise UserError(
            f"data.validation_sequences={config.validation_sequences}, but data.corpus={config.corpus} holds out only "
            f"{available} sequences of length {config.sequence_length}"
        )
    return corpus


def fingerprint(config: DataConfig) -> str:
    """The fingerprint of the corpus that a config names."""
    return load(config).fingerprint


@lru_cache(maxsize=4)
def _load(name: str, sequence_length: int) -> Corpus:
    kind, _, argument = name.partition(":")
    if kind not in CORPORA:
        raise UserError(f"data.corpus='{name}' is unknown: use {', '.join(CORPORA)} (text:PATH takes a folder)")
    return CORPORA[kind](argument, sequence_length)


def _stdlib(argument: str, sequence_length: int) -> Corpus:
    root = Path(sysconfig.get_paths()["stdlib"])
    sources = (path for path in root.rglob("*.py") if not SKIPPED_FOLDERS & set(path.relative_to(root).parts))
    return _from_files(root, sources, "stdlib")


def _text(argument: str, sequence_length: int) -> Corpus:
    root = Path(argument).expanduser()
    if not argument or not root.is_dir():
        raise UserError(f"data.corpus=text:{argument}: '{argument}' is not a folder; text:PATH takes a folder of text")
    return _from_files(root, (path for path in root.rglob("*") if path.suffix in TEXT_SUFFIXES), f"text:{argument}")


def _from_files(root: Path, paths: Iterable[Path], name: str) -> Corpus:
    documents = {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(paths) if path.is_file()}
    documents = {name: content for name, content in documents.items() if content.strip()}
    if len(documents) < 2:
        raise UserError(f"data.corpus={name} has {len(documents)} text files: at least 2 are needed, one to hold out")
    held_out = _held_out(documents)
    digest = hashlib.sha256()
    for path, content in documents.items():
        digest.update(f"{path}\0{path in held_out}\0{len(content)}\0".encode() + content)
    return Corpus(
        train_T=tokens.join([content for path, content in documents.items() if path not in held_out]),
        validation_T=tokens.join([content for path, content in documents.items() if path in held_out]),
        fingerprint=f"{name.partition(':')[0]}:{digest.hexdigest()[:16]}",
    )


def _held_out(documents: dict[str, bytes]) -> set[str]:
    # By hash of the path: adding a file to the corpus moves no other file between the parts.
    rank = sorted(documents, key=lambda path: hashlib.sha256(path.encode()).digest())
    total, held, chosen = sum(map(len, documents.values())), 0, set[str]()
    for path in rank[:-1]:  # one file at least remains to train on
        if held >= VALIDATION_SHARE * total:
            break
        chosen.add(path)
        held += len(documents[path])
    return chosen


def _markov(argument: str, sequence_length: int) -> Corpus:
    rng = numpy_stream(0, "corpus", "markov")  # one language for all seeds: a seed varies the run, not the question
    source = MarkovSource.random(rng)
    sequences = MARKOV_TOKENS // sequence_length
    states_NL = source.sample(sequences + sequences // 10, sequence_length, rng)
    digest = hashlib.sha256(states_NL.tobytes() + str(states_NL.shape).encode()).hexdigest()[:16]
    return Corpus(
        train_T=states_NL[:sequences].reshape(-1),
        validation_T=states_NL[sequences:].reshape(-1),
        fingerprint=f"markov:{digest}",
        aligned=True,
        entropy=source.entropy_per_token(sequence_length),
    )


CORPORA: dict[str, Callable[[str, int], Corpus]] = {"stdlib": _stdlib, "text": _text, "markov": _markov}
