"""Corpora of prompts and responses, of a file or generated: tokens, and which of them are of responses.

A sequence holds one conversation, or as many as there is room for. Shapes: R sequences of L tokens.
"""

import bisect
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from core.data.chat import Turn, turns
from core.data.corpus import Corpus, Reading, corpus
from core.data.documents import encoded, read_jsonl, text_of
from core.data.files import locate_file
from core.data.specials import special_tokens
from core.data.splits import SHARE, Origin
from core.data.tasks import examples, spoiled
from core.data.tokenizers import Tokenizer, Vocabulary, load_tokenizer, unread_tokens
from core.errors import UserError
from core.runtime.random_streams import numpy_stream

GENERATED = 4_000  # pairs of responses to a task


class Conversation(NamedTuple):
    """Turns, and what an error calls them; written: by a template, whose special tokens are tokens."""

    where: str
    turns: list[Turn]
    written: bool = False


@corpus("instructions", responses=True, templated=True)
def _instructions(argument: str, reading: Reading) -> Corpus:
    """instructions:FILE.jsonl with "prompt" and "response", or "messages" that data.chat_template writes.

    Only responses may be masked. One conversation a sequence, filled up with eos, or as many as fit (data.packing). Raises
    UserError for one that doesn't fit: cutting it would teach half an answer.
    """
    path = locate_file("instructions", argument)
    tokenizer, specials = load_tokenizer(reading.tokenizer), special_tokens(reading.tokenizer)
    found, unread = list[Conversation](), unread_tokens(tokenizer, specials)
    for number, row in read_jsonl(path):
        where = f"{path}:{number}"
        if "messages" in row:
            if both := {"prompt", "response"} & set(row):
                raise UserError(f'{where} has "messages" and "{min(both)}": keep one of them')
            said = turns(where, row["messages"], reading.chat_template, specials, tokenizer.shield)
            _check_read(where, said, unread, reading.tokenizer)
            found.append(Conversation(where, said, written=True))
            continue
        prompt, response = (
            text_of(row, key, path, number, ' ("messages" would do too)') for key in ("prompt", "response")
        )
        found.append(Conversation(where, [(prompt, False), (response, True)]))
    held = _held_out_rows(len(found), reading.held_out_share)
    corpus = _of_turns("instructions", found, held, tokenizer, reading) if found else None
    if corpus is None or len(found) < 20:
        raise UserError(f"{path} has {len(found)} pairs: at least 20 are needed, two of them to hold out")
    return replace(corpus, origin=Origin([path.name], [f"the last {held:,} of {len(found):,} conversations"]))


def _check_read(where: str, pieces: Iterable[tuple[str, bool]], unread: Mapping[str, str], tokenizer: str) -> None:
    """Raises UserError where a conversation has a token that isn't read as one id: it would be learned as some other text.

    unread: as `core.data.tokenizers.unread_tokens` has it.
    """
    for text, _ in pieces:
        for token, name in unread.items():
            if token in text:
                raise UserError(
                    f"{where}: data.tokenizer={tokenizer} doesn't read {token}, its {name}, as one id: list it in the "
                    "added_tokens of tokenizer.json"
                )


@corpus("preferences", responses=True, pairs=True)
def _preferences(argument: str, reading: Reading) -> Corpus:
    """preferences:FILE.jsonl with "prompt", "chosen" and "rejected": two sequences a pair, each filled up with eos.

    preferences:task:NAME makes its own: a task's right response, and one that is wrong by a symbol.
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
        held = _held_out_rows(len(rows) // 2, reading.held_out_share)
        origin = Origin([path.name], [f"the last {held:,} of {len(rows) // 2:,} pairs"])
    name = "preferences" if kind != "task" else f"preferences:task:{task}"
    pairs = _of_pairs(name, rows, 2 * held, reading._replace(packing=False))
    return replace(pairs, rows=2, origin=origin)


@corpus("task", responses=True)
def _task(argument: str, reading: Reading) -> Corpus:
    """task:NAME, a generated task of core.data.tasks: one example a sequence, filled up with eos, or packed."""
    made = examples(argument)
    pairs = [(f"task:{argument}", *pair) for pair in (*made.train, *made.held_out)]
    return _of_pairs(f"task:{argument}", pairs, len(made.held_out), reading)


def _held_out_rows(count: int, share: float | None) -> int:
    """Number of rows held out at the end."""
    return min(count - 1, max(1, int(count * (share or SHARE) + 1e-9))) if count > 1 else 0


def _of_pairs(name: str, pairs: list[tuple[str, str, str]], held: int, reading: Reading) -> Corpus:
    """Prompts and responses, each with what an error calls it; the last ones are held out."""
    said = [Conversation(where, [(prompt, False), (response, True)]) for where, prompt, response in pairs]
    return _of_turns(name, said, held, load_tokenizer(reading.tokenizer), reading)


def _of_turns(
    name: str, conversations: Sequence[Conversation], held: int, tokenizer: Tokenizer, reading: Reading
) -> Corpus:
    """Conversations, of which the last ones are held out. An end token is put behind each, unless it ends with one."""
    ids, responses, sequence_length, packing = [], [], reading.sequence_length, reading.packing
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
        _lay_out(ids[part], responses[part], sequence_length, tokenizer.vocabulary, packed=packing)
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


class Rows(NamedTuple):
    """Sequences of one length: ids (R, L); which tokens are of responses, (R, L) bool; and which of a sequence's
    conversations each is of, from 1 on, 0 for filling, (R, L) int16."""

    tokens_RL: np.ndarray
    response_RL: np.ndarray
    segments_RL: np.ndarray


def _lay_out(
    ids: Sequence[np.ndarray], response: Sequence[np.ndarray], length: int, vocabulary: Vocabulary, *, packed: bool
) -> Rows:
    """Each conversation's ids and responses, closed by one eos that counts as response, in sequences filled up with eos.

    Where they aren't packed the filling counts as response too, so that a model learns where to end (LLaDA, arXiv
    2502.09992, App. B.1); where they are it is nobody's.
    """
    sizes = [len(one) + 1 for one in ids]
    rows = fit(sizes, length) if packed else [[index] for index in range(len(ids))]
    tokens_RL = np.full((len(rows), length), vocabulary.eos, dtype=vocabulary.dtype)
    response_RL = np.full((len(rows), length), not packed)
    segments_RL = np.zeros((len(rows), length), dtype=np.int16)
    for row, members in enumerate(rows):
        start = 0
        for segment, index in enumerate(members, start=1):
            end = start + sizes[index]
            tokens_RL[row, start : end - 1], response_RL[row, start : end - 1] = ids[index], response[index]
            response_RL[row, end - 1] = True
            segments_RL[row, start:end] = segment
            start = end
    return Rows(tokens_RL, response_RL, segments_RL)


def fit(sizes: Sequence[int], room: int) -> list[list[int]]:
    """Pack items into bins: best fit, the largest first (Johnson 1973). Bins are in order of their
    first item, and items in their own order within."""
    spaces: list[tuple[int, int]] = []  # (what is left, bin), in order
    bins: list[list[int]] = []
    for index in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        place = bisect.bisect_left(spaces, (sizes[index], -1))
        left, chosen = spaces.pop(place) if place < len(spaces) else (room, len(bins))
        if chosen == len(bins):
            bins.append([])
        bins[chosen].append(index)
        bisect.insort(spaces, (left - sizes[index], chosen))
    return sorted(map(sorted, bins))
