"""Text as bytes: 256 byte values, then the special tokens."""

import numpy as np

MASK_ID = 256
EOS_ID = 257
PAD_ID = 258
VOCAB_SIZE = 259


def encode(text: bytes) -> np.ndarray:
    """Bytes as token ids. Returns (len(text),) uint16."""
    return np.frombuffer(text, dtype=np.uint8).astype(np.uint16)


def join(documents: list[bytes]) -> np.ndarray:
    """Documents one after the other, each closed by eos. Returns (T,) uint16."""
    eos = np.array([EOS_ID], dtype=np.uint16)
    parts = [part for document in documents for part in (encode(document), eos)]
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.uint16)


def decode(tokens: np.ndarray) -> str:
    """Token ids as text; the mask shows as U+2591, eos and pad as line ends."""
    special = {MASK_ID: "░".encode(), EOS_ID: b"\n", PAD_ID: b"\n"}
    return b"".join(special.get(int(t), bytes([min(int(t), 255)])) for t in tokens).decode(errors="replace")
