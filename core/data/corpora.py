"""What is learned from: text, token shards, instructions, or a source of known entropy."""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from core.config.run import DataConfig
from core.data.chat import Turn, turns
from core.data.documents import TEXTS, encoded, read_jsonl, text_of
from core.data.files import locate_file
from core.data.hierarchy import TreeSource
from core.data.mixtures import Part, blend, shares
from core.data.names import kinds, parse
from core.data.packing import lay_out
from core.data.shards import Shards, read_shards
from core.data.specials import check_read, special_tokens
from core.data.splits import SHARE, Origin, check_share, sentence
from core.data.synthetic import DOMAINS, HiddenMarkovSource, MarkovSource, Source, mixture
from core.data.tasks import examples, spoiled
from core.data.tokenizers import Tokenizer, Vocabulary, load_tokenizer, unread_tokens
from core.errors import UserError
from core.runtime.random_streams import numpy_stream

SYNTHETIC_TOKENS = 1_000_000
GENERATED = 4_000  # pairs of responses to a task


class Conversation(NamedTuple):
    """Turns, and what an error calls them; written: by a template, whose special tokens are tokens."""

    where: str
    turns: list[Turn]
    written: bool = False


@dataclass(frozen=True)
class Corpus:
    """Tokens to learn from and tokens held out.

    train_T, validation_T: (T,) token ids; both can be sliced, and may lie on disk. aligned: sequences start at
    multiples of the sequence length only.
    train_maskable_T, validation_maskable_T: (T,) bool, True in responses, for supervised fine-tuning; None: everywhere.
    rows: sequences that make one example: 2 for a chosen and a rejected response to one prompt.
    train_domain_S, validation_domain_S: (sequences,) which domain of a mixture each came from.
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
    train_domain_S: np.ndarray | None = None
    validation_domain_S: np.ndarray | None = None
    train_segments_T: np.ndarray | None = None
    validation_segments_T: np.ndarray | None = None
    parts: tuple[Part, ...] = ()
    origin: Origin = Origin(fixed=True)  # noqa: RUF009  (frozen)


def load(config: DataConfig) -> Corpus:
    """The corpus that a config names, cached within the process.

    Raises UserError when the name is unknown, the files can't be used, or there is too little in them.
    """
    if config.chat_template != DataConfig.chat_template and "instructions" not in kinds(config.corpus):
        raise UserError(
            f"data.chat_template={config.chat_template} means nothing to data.corpus={config.corpus}: leave it out, or use "
            "instructions:FILE.jsonl"
        )
    corpus = _of(config)
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


def _of(config: DataConfig) -> Corpus:
    reading = (config.tokenizer, config.sequence_length, config.packing, config.chat_template, config.held_out_share)
    return _load(config.corpus, *reading)


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


def fingerprint(config: DataConfig) -> str:
    """The fingerprint of the corpus that a config names."""
    return load(config).fingerprint


@lru_cache(maxsize=4)
def _load(name: str, tokenizer: str, sequence_length: int, packing: bool, template: str, share: float | None) -> Corpus:
    if mixed := parse(name):
        text = any(part.partition(":")[0] != "tokens" for _, part in mixed)
        return blend(
            name,
            [weight for weight, _ in mixed],
            [part for _, part in mixed],
            [
                _load(
                    part,
                    "bytes" if text and part.startswith("tokens:") else tokenizer,
                    sequence_length,
                    packing,
                    template,
                    share,
                )
                for _, part in mixed
            ],
        )
    kind, _, argument = name.partition(":")
    if kind in TEXTS:
        return _from_text(kind, argument, tokenizer, share)
    if kind == "instructions":
        return _instructions(argument, tokenizer, sequence_length, packing, template, share)
    if kind == "preferences":
        return _preferences(argument, tokenizer, sequence_length, share)
    if kind == "task":
        return _task(argument, tokenizer, sequence_length, packing)
    if tokenizer != "bytes":
        raise UserError(
            f"data.tokenizer={tokenizer} goes with text; data.corpus={name} is tokens already: leave it out"
        )
    if kind == "tokens":
        shards, origin = read_shards(argument, share)
        return Corpus(
            shards.train,
            shards.validation,
            shards.fingerprint,
            shards.vocabulary,
            bytes_per_token=shards.bytes_per_token,
            origin=origin,
        )
    if kind in SOURCES:
        return SOURCES[kind](sequence_length)
    known = [*TEXTS, "instructions", "preferences", "task", "tokens", *SOURCES]
    raise UserError(
        f"data.corpus='{name}' is unknown: use one of {', '.join(known)} (some take a path, as in text:PATH)"
    )


def _from_text(kind: str, argument: str, tokenizer_name: str, share: float | None) -> Corpus:
    documents, tokenizer = TEXTS[kind](argument, share), load_tokenizer(tokenizer_name)
    train_T, validation_T = tokenizer.join(documents.train), tokenizer.join(documents.validation)
    # Bytes are their own ids; of others the ids count, whatever the tokenizer and its library made of the text.
    ids = "" if tokenizer_name == "bytes" else f"+{_digest(train_T, validation_T)}"
    return Corpus(
        train_T=train_T,
        validation_T=validation_T,
        fingerprint=f"{kind}:{documents.digest}{ids}",
        vocabulary=tokenizer.vocabulary,
        bytes_per_token=sum(map(len, documents.validation.values())) / len(validation_T),
        origin=documents.origin,
    )


def _digest(*arrays: np.ndarray) -> str:
    digest = hashlib.sha256(",".join(str(len(array)) for array in arrays).encode())
    for array in arrays:
        digest.update(array.astype("<u4").tobytes())
    return digest.hexdigest()[:16]


def _instructions(
    argument: str, tokenizer_name: str, sequence_length: int, packing: bool, template: str, share: float | None
) -> Corpus:
    """instructions:FILE.jsonl with "prompt" and "response", or "messages" that data.chat_template writes.

    Only responses may be masked. One conversation a sequence, filled up with eos, or as many as fit (data.packing). Raises
    UserError for one that doesn't fit: cutting it would teach half an answer.
    """
    path = locate_file("instructions", argument)
    tokenizer, specials = load_tokenizer(tokenizer_name), special_tokens(tokenizer_name)
    found, unread = list[Conversation](), unread_tokens(tokenizer, specials)
    for number, row in read_jsonl(path):
        where = f"{path}:{number}"
        if "messages" in row:
            if both := {"prompt", "response"} & set(row):
                raise UserError(f'{where} has "messages" and "{min(both)}": keep one of them')
            said = turns(where, row["messages"], template, specials, tokenizer.shield)
            check_read(where, said, unread, tokenizer_name)
            found.append(Conversation(where, said, written=True))
            continue
        prompt, response = (
            text_of(row, key, path, number, ' ("messages" would do too)') for key in ("prompt", "response")
        )
        found.append(Conversation(where, [(prompt, False), (response, True)]))
    held = _held(len(found), share)
    corpus = _of_turns("instructions", found, held, tokenizer, sequence_length, packing) if found else None
    if corpus is None or len(found) < 20:
        raise UserError(f"{path} has {len(found)} pairs: at least 20 are needed, two of them to hold out")
    return replace(corpus, origin=Origin([path.name], [f"the last {held:,} of {len(found):,} conversations"]))


def _held(count: int, share: float | None) -> int:
    """How many of that many rows are held out, at their end."""
    return min(count - 1, max(1, int(count * (share or SHARE) + 1e-9))) if count > 1 else 0


def _task(argument: str, tokenizer_name: str, sequence_length: int, packing: bool = False) -> Corpus:
    """task:NAME, a generated task of core.data.tasks: one example a sequence, filled up with eos, or packed."""
    made = examples(argument)
    pairs = [(f"task:{argument}", *pair) for pair in (*made.train, *made.held_out)]
    tokenizer = load_tokenizer(tokenizer_name)
    return _of_pairs(f"task:{argument}", pairs, len(made.held_out), tokenizer, sequence_length, packing)


def _preferences(argument: str, tokenizer_name: str, sequence_length: int, share: float | None) -> Corpus:
    """preferences:FILE.jsonl with "prompt", "chosen" and "rejected": two sequences a pair, each filled up with eos.

    preferences:task:NAME makes its own: a task's right response, and one that is wrong by a symbol. Raises UserError as
    `_instructions` does.
    """
    kind, _, task = argument.partition(":")
    rows, origin = list[tuple[str, str, str]](), Origin(fixed=True)
    if kind == "task" and task:
        made, rng = examples(task), numpy_stream(0, "preferences", task)
        for prompt, right in (*made.train[:GENERATED], *made.held_out[: GENERATED // 4]):
            wrong = spoiled(task, prompt, right, rng)
            rows += [(f"task:{task}", prompt, right), (f"task:{task}", prompt, wrong)]
        held = len(made.held_out[: GENERATED // 4])
    else:
        path = locate_file("preferences", argument)
        for number, row in read_jsonl(path):
            prompt, *sides = (text_of(row, key, path, number) for key in ("prompt", "chosen", "rejected"))
            rows += [(f"{path}:{number}", prompt, side) for side in sides]
        if len(rows) < 40:
            raise UserError(f"{path} has {len(rows) // 2} pairs: at least 20 are needed, two of them to hold out")
        held = _held(len(rows) // 2, share)
        origin = Origin([path.name], [f"the last {held:,} of {len(rows) // 2:,} pairs"])
    name = "preferences" if kind != "task" else f"preferences:task:{task}"
    pairs = _of_pairs(name, rows, 2 * held, load_tokenizer(tokenizer_name), sequence_length)
    return replace(pairs, rows=2, origin=origin)


def _of_pairs(
    name: str,
    pairs: list[tuple[str, str, str]],
    held: int,
    tokenizer: Tokenizer,
    sequence_length: int,
    packing: bool = False,
) -> Corpus:
    """Prompts and responses, each with what an error calls it; the last ones are held out."""
    said = [Conversation(where, [(prompt, False), (response, True)]) for where, prompt, response in pairs]
    return _of_turns(name, said, held, tokenizer, sequence_length, packing)


def _of_turns(
    name: str,
    conversations: Sequence[Conversation],
    held: int,
    tokenizer: Tokenizer,
    sequence_length: int,
    packing: bool,
) -> Corpus:
    """Conversations, of which the last ones are held out. An end token is put behind each, unless it ends with one."""
    ids, responses = [], []
    for where, pieces, written in conversations:
        # Piece by piece: a prompt's tokens are those that it has where no response follows.
        last = pieces[-1][0]
        texts = [text for text, _ in pieces[:-1]] + [_without_end(last, tokenizer)]
        parts = [tokenizer.encode(where, encoded(text, where), special=written) for text in texts]
        mask = tokenizer.vocabulary.mask
        if mask is not None and any((part == mask).any() for part in parts):
            raise UserError(f"{where}: data.chat_template writes the mask token, which can't be learned")
        used = sum(map(len, parts)) + 1
        if used > sequence_length:
            raise UserError(f"{where} needs {used} tokens: raise data.sequence_length={sequence_length} or drop it")
        ids.append(np.concatenate(parts))
        responses.append(np.repeat([response for _, response in pieces], [len(part) for part in parts]))
    cut = len(ids) - held
    train, validation = (
        lay_out(ids[part], responses[part], sequence_length, tokenizer.vocabulary, packed=packing)
        for part in (slice(cut), slice(cut, None))
    )
    tokens_T, maskable_T, segments_T = (
        np.concatenate(columns).reshape(-1) for columns in zip(train, validation, strict=True)
    )
    digest = hashlib.sha256(tokens_T.tobytes() + maskable_T.tobytes() + (segments_T.tobytes() if packing else b""))
    end = train.tokens_RL.size
    return Corpus(
        train_T=tokens_T[:end],
        validation_T=tokens_T[end:],
        fingerprint=f"{name}:{digest.hexdigest()[:16]}",
        vocabulary=tokenizer.vocabulary,
        aligned=True,
        train_maskable_T=maskable_T[:end],
        validation_maskable_T=maskable_T[end:],
        train_segments_T=segments_T[:end] if packing else None,
        validation_segments_T=segments_T[end:] if packing else None,
    )


def _without_end(text: str, tokenizer: Tokenizer) -> str:
    """A last response without the end token that a template, or who wrote it, put there: many have a line end behind it."""
    bare = text.rstrip()
    ends = (tokenizer.end, tokenizer.shield(tokenizer.end))
    return next((bare.removesuffix(end) for end in ends if end and bare.endswith(end)), text)


# A source's name seeds its stream: one language for all seeds, because a seed varies the run and not the question.


def _markov(length: int) -> Corpus:
    rng = numpy_stream(0, "corpus", "markov")
    source = MarkovSource.random(rng)
    return _sampled("markov", source, *_count(length), length, rng, entropy=source.entropy_per_token(length))


def _tree(length: int) -> Corpus:
    rng = numpy_stream(0, "corpus", "tree", length)
    source = TreeSource.random(rng, length)
    return _sampled("tree", source, *_count(length), length, rng, entropy=source.entropy_per_token(length))


def _hmm(length: int) -> Corpus:
    rng = numpy_stream(0, "corpus", "hmm")
    return _sampled("hmm", HiddenMarkovSource.random(rng), *_count(length), length, rng)


def _mixture(length: int) -> Corpus:
    rng = numpy_stream(0, "corpus", "mixture")
    chains = [MarkovSource.random(rng) for _ in range(DOMAINS)]
    source = mixture(chains)
    train, held = _count(length)
    tokens_NL, states_NL = source.sample_with_states(train + held, length, rng)
    domains_N = (states_NL[:, 0] // chains[0].vocabulary_size).astype(np.int64)
    return _packed("mixture", source, tokens_NL, train, domains_N=domains_N)


def _sampled(
    name: str,
    source: Source,
    train: int,
    held: int,
    length: int,
    rng: np.random.Generator,
    entropy: float | None = None,
) -> Corpus:
    return _packed(name, source, source.sample(train + held, length, rng), train, entropy=entropy)


def _packed(
    name: str,
    source: Source,
    tokens_NL: np.ndarray,
    train: int,
    *,
    entropy: float | None = None,
    domains_N: np.ndarray | None = None,
) -> Corpus:
    digest = hashlib.sha256(tokens_NL.tobytes() + str(tokens_NL.shape).encode()).hexdigest()[:16]
    if entropy is None:
        # No closed form: the mean of exact log-probabilities over all sequences, a standard error below 0.002 nats.
        entropy = -float(source.log_probability(tokens_NL).mean()) / tokens_NL.shape[1]
    return Corpus(
        train_T=tokens_NL[:train].reshape(-1),
        validation_T=tokens_NL[train:].reshape(-1),
        fingerprint=f"{name}:{digest}",
        vocabulary=load_tokenizer("bytes").vocabulary,
        aligned=True,
        source=source,
        entropy=entropy,
        train_domain_S=None if domains_N is None else domains_N[:train],
        validation_domain_S=None if domains_N is None else domains_N[train:],
    )


def _count(length: int) -> tuple[int, int]:
    sequences = SYNTHETIC_TOKENS // length
    return sequences, sequences // 10


SOURCES: dict[str, Callable[[int], Corpus]] = {"markov": _markov, "hmm": _hmm, "tree": _tree, "mixture": _mixture}
