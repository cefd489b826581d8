"""Text to token ids: bytes as they are, or any Hugging Face tokenizer.json."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from core.data import tokens
from core.data.specials import special_tokens
from core.errors import UserError

if TYPE_CHECKING:
    from tokenizers import Tokenizer as FastTokenizer

MASK, END, PAD = "<|mask|>", "<|endoftext|>", "<|pad|>"
# Names under which published tokenizers keep these, ours first.
MASKS = (MASK, "<|mdm_mask|>", "[MASK]", "<mask>")
ENDS = (END, "</s>", "<eos>", "<|end_of_text|>", "[SEP]")
PADS = (PAD, "<pad>", "[PAD]", "<|padding|>", *ENDS)


@dataclass(frozen=True)
class Vocabulary:
    """How many ids there are, and which are special; None where there is none or it isn't known."""

    size: int
    mask: int | None = None
    eos: int | None = None
    pad: int | None = None

    @property
    def dtype(self) -> type[np.uint16] | type[np.uint32]:
        """The smallest unsigned type that holds every id."""
        return np.uint16 if self.size <= 2**16 else np.uint32


class Tokenizer(Protocol):
    """What turns documents into ids."""

    vocabulary: Vocabulary
    digest: str  # equal only for tokenizers that give the same ids

    def join(self, documents: Mapping[str, bytes]) -> np.ndarray:
        """Documents (by name, for error messages) one after the other, each closed by eos. Returns (T,) ids."""

    def encode(self, name: str, text: bytes) -> np.ndarray:
        """One document's ids, without eos. Returns (T,)."""

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, special tokens as the vocabulary writes them; bytes that are no UTF-8 show as U+FFFD."""


class ByteTokenizer:
    """Every byte its own id: nothing to train, nothing unknown."""

    vocabulary = Vocabulary(tokens.VOCAB_SIZE, tokens.MASK_ID, tokens.EOS_ID, tokens.PAD_ID)
    digest = "bytes"

    def join(self, documents: Mapping[str, bytes]) -> np.ndarray:
        return tokens.join(list(documents.values()))

    def encode(self, name: str, text: bytes) -> np.ndarray:
        return tokens.encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        return tokens.decode(np.asarray(ids))


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
        find, named = self.tokenizer.token_to_id, special_tokens(str(path)).get("eos_token", "")
        mask, eos, pad = (next((i for i in map(find, names) if i is not None), None) for names in (MASKS, ENDS, PADS))
        if named and find(named) is None:
            raise UserError(
                f"data.tokenizer={path}: {named}, the eos_token of the tokenizer_config.json beside it, is none of its tokens"
            )
        told = f"eos {find(named)}" if named and find(named) != eos else ""
        eos = find(named) if named else eos
        if eos is None:
            raise UserError(
                f"data.tokenizer={path} has no end token; one of {', '.join(ENDS)} is needed, or an eos_token in the "
                "tokenizer_config.json beside it"
            )
        if self.tokenizer.truncation or self.tokenizer.padding:  # a text would be cut, or filled up, without a word
            self.tokenizer.no_truncation()
            self.tokenizer.no_padding()
            told += " whole"
        self.digest = hashlib.sha256(content + told.encode()).hexdigest()[:16]
        size = 1 + max(self.tokenizer.get_vocab(with_added_tokens=True).values(), default=0)  # ids may have gaps
        self.vocabulary = Vocabulary(size, mask, eos, pad)

    def join(self, documents: Mapping[str, bytes]) -> np.ndarray:
        texts = [_text(name, content) for name, content in documents.items()]
        try:
            encoded = self.tokenizer.encode_batch(texts, add_special_tokens=False)
        except BaseException as error:
            raise _panic(error, f"data.tokenizer={self.path} can't encode {', '.join(list(documents)[:3])}") from None
        dtype = self.vocabulary.dtype
        eos = np.array([self.vocabulary.eos], dtype=dtype)
        parts = [part for one in encoded for part in (np.array(one.ids, dtype=dtype), eos)]
        return np.concatenate(parts) if parts else np.zeros(0, dtype=dtype)

    def encode(self, name: str, text: bytes) -> np.ndarray:
        try:
            ids = self.tokenizer.encode(_text(name, text), add_special_tokens=False).ids
        except UserError:
            raise
        except BaseException as error:
            raise _panic(error, f"data.tokenizer={self.path} can't encode {name}") from None
        return np.array(ids, dtype=self.vocabulary.dtype)

    def decode(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(list(ids), skip_special_tokens=False)


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
