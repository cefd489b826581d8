"""Text to token ids: bytes as they are, or any Hugging Face tokenizer.json.

A tokenizer.json says how text becomes ids, and no more: what it brings along of cutting, filling up and chance is reset.
"""

import hashlib
import itertools
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from core.data.specials import special_tokens
from core.errors import UserError

if TYPE_CHECKING:
    from tokenizers import Tokenizer as FastTokenizer

MASK, END, PAD = "<|mask|>", "<|endoftext|>", "<|pad|>"
# Names under which published tokenizers keep these, ours first.
MASKS = (MASK, "<|mdm_mask|>", "[MASK]", "<mask>")
ENDS = (END, "</s>", "<eos>", "<|end_of_text|>", "[SEP]")
PADS = (PAD, "<pad>", "[PAD]", "<|padding|>", *ENDS)
SHIELD = "\ufdd0"  # no character of any text: put into a special token's name, it is one no more


@dataclass(frozen=True)
class Vocabulary:
    """Size of a vocabulary and its special ids; None where there is none or it isn't known."""

    size: int
    mask: int | None = None
    eos: int | None = None
    pad: int | None = None

    @property
    def dtype(self) -> type[np.uint16] | type[np.uint32]:
        """The smallest unsigned type that holds every id."""
        return np.uint16 if self.size <= 2**16 else np.uint32


class ByteTokenizer:
    """Every byte its own id, then the special tokens: nothing to train, nothing unknown."""

    vocabulary = Vocabulary(259, mask=256, eos=257, pad=258)
    end = ""  # how a text can have written the end token; "" where it can't

    def join(self, documents: Mapping[str, bytes]) -> np.ndarray:
        """Documents (by name, for error messages) one after the other, each closed by eos. Returns (T,) ids."""
        return _join((self.encode(name, text) for name, text in documents.items()), self.vocabulary)

    def encode(self, name: str, text: bytes, *, special: bool = True) -> np.ndarray:
        """One text's ids, without eos. Returns (T,). special: names of special tokens are those tokens, and no text."""
        return np.frombuffer(text, dtype=np.uint8).astype(np.uint16)

    def shield(self, text: str) -> str:
        """The text so that `encode` reads its special tokens' names as text, with `special` too, wherever it is put."""
        return text

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids: the mask shows as U+2591, eos and pad as line ends, bytes that are no UTF-8 as U+FFFD."""
        special = {self.vocabulary.mask: "░".encode(), self.vocabulary.eos: b"\n", self.vocabulary.pad: b"\n"}
        return b"".join(special.get(int(i), bytes([min(int(i), 255)])) for i in ids).decode(errors="replace")


class FileTokenizer:
    """A tokenizer.json. Raises UserError when it can't be read, has no end token, or a text isn't UTF-8."""

    def __init__(self, path: Path) -> None:
        from tokenizers import Tokenizer as FastTokenizer  # bytes need none of it

        self.path = path
        try:
            content = path.read_bytes()
            self.tokenizer = FastTokenizer.from_buffer(content)
        except OSError as error:
            raise UserError(f"data.tokenizer={path} can't be read: {error.strerror}") from None
        except BaseException as error:  # the library raises a bare Exception for what it doesn't understand, or panics
            raise _panic(error, f"data.tokenizer={path} is no tokenizer.json") from None
        find, end = self.tokenizer.token_to_id, special_tokens(str(path)).get("eos_token", "")
        mask, eos, pad = (next((i for i in map(find, names) if i is not None), None) for names in (MASKS, ENDS, PADS))
        if end and find(end) is None:
            raise UserError(
                f"data.tokenizer={path}: {end}, the eos_token of the tokenizer_config.json beside it, is none of its tokens"
            )
        eos = find(end) if end else eos
        if eos is None:
            raise UserError(
                f"data.tokenizer={path} has no end token; one of {', '.join(ENDS)} is needed, or an eos_token in the "
                "tokenizer_config.json beside it"
            )
        if eos == mask:
            raise UserError(
                f"data.tokenizer={path}: {end}, the eos_token of the tokenizer_config.json beside it, is the mask, which "
                "can't be learned: name another"
            )
        _reset(self.tokenizer)
        self.digest = hashlib.sha256(content + f"eos {eos}".encode()).hexdigest()[:16]  # of what it is, not of its ids
        size = 1 + max(self.tokenizer.get_vocab(with_added_tokens=True).values(), default=0)  # ids may have gaps
        self.vocabulary, self.end = Vocabulary(size, mask, eos, pad), self.tokenizer.id_to_token(eos) or ""
        named = [i for i in (mask, eos, pad) if i is not None]
        specials = _make_special(self.tokenizer, named)
        self._shields = {one: f"{one[0]}{SHIELD}{one[1:]}" for one in sorted(specials, key=len, reverse=True)}
        self._shielded = re.compile("(" + "|".join(map(re.escape, self._shields.values())) + ")")

    def join(self, documents: Mapping[str, bytes]) -> np.ndarray:
        texts = [_text(name, content) for name, content in documents.items()]
        try:
            self.tokenizer.encode_special_tokens = True
            encoded = self.tokenizer.encode_batch(texts, add_special_tokens=False)
        except BaseException as error:
            raise _panic(error, f"data.tokenizer={self.path} can't encode {', '.join(list(documents)[:3])}") from None
        found = (self._unmasked(name, one.ids) for name, one in zip(documents, encoded, strict=True))
        return _join(found, self.vocabulary)

    def encode(self, name: str, text: bytes, *, special: bool = True) -> np.ndarray:
        said = _text(name, text)
        if not special:
            return self._unmasked(name, self._ids(name, said, special=False))
        parts = self._shielded.split(said) if self._shields and SHIELD in said else [said]
        ids = [
            self._ids(name, part.replace(SHIELD, ""), special=not shielded)
            for part, shielded in zip(parts, itertools.cycle((False, True)), strict=False)
            if part
        ]
        return np.array(list(itertools.chain(*ids)), dtype=self.vocabulary.dtype)

    def shield(self, text: str) -> str:
        for special, shielded in self._shields.items():
            text = text.replace(special, shielded)
        return text

    def _ids(self, name: str, text: str, *, special: bool) -> list[int]:
        try:
            self.tokenizer.encode_special_tokens = not special
            return self.tokenizer.encode(text, add_special_tokens=False).ids
        except BaseException as error:
            raise _panic(error, f"data.tokenizer={self.path} can't encode {name}") from None

    def _unmasked(self, name: str, ids: Sequence[int]) -> np.ndarray:
        if self.vocabulary.mask is not None and self.vocabulary.mask in ids:
            raise UserError(
                f"data.tokenizer={self.path} reads {self.decode([self.vocabulary.mask])} in {name} as the mask, which can't "
                "be learned: list it in the added_tokens of tokenizer.json, so that it can be read as text"
            )
        return np.array(ids, dtype=self.vocabulary.dtype)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, special tokens as the vocabulary writes them."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=False)


Tokenizer: TypeAlias = ByteTokenizer | FileTokenizer


def _join(documents: Iterable[np.ndarray], vocabulary: Vocabulary) -> np.ndarray:
    eos = np.array([vocabulary.eos], dtype=vocabulary.dtype)
    parts = [part for ids in documents for part in (ids, eos)]
    return np.concatenate([np.zeros(0, dtype=vocabulary.dtype), *parts])


def _reset(tokenizer: "FastTokenizer") -> None:
    """Switch off what would cut a text, fill it up, or read it otherwise each time."""
    tokenizer.no_truncation()
    tokenizer.no_padding()
    if getattr(tokenizer.model, "dropout", None) is not None:  # of BPE; a file can't give the other models any chance
        tokenizer.model.dropout = None


def _make_special(tokenizer: "FastTokenizer", named: Sequence[int]) -> set[str]:
    """Let the named ids be special tokens, which it may list as others; returns the names of all that are special."""
    from tokenizers import AddedToken

    added = tokenizer.get_added_tokens_decoder()
    plain = [added[i] for i in named if i in added and not added[i].special]
    tokenizer.add_special_tokens([AddedToken(one.content, special=True) for one in plain])
    specials = (one.content for one in tokenizer.get_added_tokens_decoder().values() if one.special)
    return {name for name in specials if name}


def _panic(error: BaseException, said: str) -> BaseException:
    """A UserError for what the library raises, whose panics are no Exceptions; what isn't its own is given back."""
    if isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit):
        return error
    return UserError(f"{said}: {' '.join(str(error).split())[:200]}")


def unread_tokens(tokenizer: Tokenizer, tokens: Mapping[str, str]) -> dict[str, str]:
    """Names of the special tokens whose text the tokenizer doesn't read as the token's one id, by that text."""
    if not isinstance(tokenizer, FileTokenizer):
        return {}
    fast = tokenizer.tokenizer
    fast.encode_special_tokens = False
    return {
        token: name
        for name, token in tokens.items()
        if token and fast.encode(token, add_special_tokens=False).ids != [fast.token_to_id(token)]
    }


@lru_cache(maxsize=4)
def load_tokenizer(name: str) -> Tokenizer:
    """The tokenizer that `data.tokenizer` names: "bytes" or the path of a tokenizer.json."""
    return ByteTokenizer() if name == "bytes" else FileTokenizer(Path(os.path.expanduser(name)))


def train_bpe(texts: Sequence[bytes], vocab_size: int) -> "FastTokenizer":
    """A byte-level BPE (GPT-2's kind: no text is out of its reach) with mask, end and pad tokens.

    Raises UserError for a vocabulary that can't even hold the bytes and the special tokens.
    """
    from tokenizers import Tokenizer as FastTokenizer
    from tokenizers import decoders, models, pre_tokenizers, trainers

    special = [END, MASK, PAD]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    if vocab_size < len(alphabet) + len(special):
        raise UserError(
            f"--vocab-size {vocab_size} is too small: {len(alphabet) + len(special)} hold bytes and specials"
        )
    tokenizer = FastTokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator((_text("the corpus", text) for text in texts), trainer)
    return tokenizer


def _text(name: str, content: bytes) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise UserError(
            f"{name} isn't UTF-8 (byte {error.start}): data.tokenizer=bytes takes any bytes, other tokenizers need text"
        ) from None
