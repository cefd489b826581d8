"""Corpora of prompts and responses, from conversations: tokens, and which of them are of responses."""

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from core.data.chat import Turn
from core.data.corpus import Corpus, Reading
from core.data.documents import encoded
from core.data.packing import lay_out
from core.data.splits import SHARE
from core.data.tokenizers import Tokenizer, load_tokenizer
from core.errors import UserError


class Conversation(NamedTuple):
    """Turns, and what an error calls them; written: by a template, whose special tokens are tokens."""

    where: str
    turns: list[Turn]
    written: bool = False


def held_out_rows(count: int, share: float | None) -> int:
    """Number of rows held out at the end."""
    return min(count - 1, max(1, int(count * (share or SHARE) + 1e-9))) if count > 1 else 0


def of_pairs(name: str, pairs: list[tuple[str, str, str]], held: int, reading: Reading) -> Corpus:
    """Prompts and responses, each with what an error calls it; the last ones are held out."""
    said = [Conversation(where, [(prompt, False), (response, True)]) for where, prompt, response in pairs]
    return of_turns(name, said, held, load_tokenizer(reading.tokenizer), reading)


def of_turns(
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
