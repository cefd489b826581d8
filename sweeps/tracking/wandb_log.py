"""W&B's transaction logs, the `.wandb` files that a run leaves which is mirrored offline: read, and copied in part.

The format is LevelDB's log behind a header of 7 bytes: blocks of 32 KiB, in them pieces of CRC-32 (of kind and content),
length and kind, little-endian; a record that doesn't fit into a block goes on in the next.
"""

import struct
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.errors import UserError

MAGIC, HEADER, BLOCK = b":W&B", 7, 32768
PIECE = struct.Struct("<IHB")
WHOLE, FIRST, MIDDLE, LAST = 1, 2, 3, 4


@dataclass(frozen=True)
class Log:
    """Content of one file. steps: of its history rows, in order. torn: its end is missing, as after `kill -9`."""

    path: Path
    run_id: str
    entity: str
    project: str
    started: float
    steps: tuple[int, ...]
    torn: bool


def read(path: Path) -> Log:
    """Read a file. Raises UserError where it is none, or doesn't name its run."""
    contents, torn = _records(path)
    run: Any = None
    steps = []
    for record in map(_parsed, contents):
        if record.HasField("run") and run is None:
            run = record.run
        elif record.HasField("history"):
            steps.append(record.history.step.num)
    if run is None:
        raise UserError(f"{path.name} doesn't say which run it is of")
    return Log(path, run.run_id, run.entity, run.project, run.start_time.ToNanoseconds() / 1e9, tuple(steps), torn)


def records(path: Path) -> Iterator[Any]:
    """The whole records of a file, as W&B's messages. Raises UserError where it is none of W&B's."""
    yield from map(_parsed, _records(path)[0])


def copy_after(path: Path, target: Path, step: int) -> None:
    """Copy a file without its history rows up to a step, and without a torn end."""
    kept = (record for record in _records(path)[0] if not _is_row_until(_parsed(record), step))
    target.write_bytes(path.read_bytes()[:HEADER] + b"".join(_pieces(kept)))


def _parsed(record: bytes) -> Any:
    from wandb.proto import wandb_internal_pb2

    messages: Any = wandb_internal_pb2  # its stubs don't say what it has
    return messages.Record.FromString(record)


def _is_row_until(record: Any, step: int) -> bool:
    return bool(record.HasField("history")) and record.history.step.num <= step


def _records(path: Path) -> tuple[list[bytes], bool]:
    """The whole records, and whether the file ends inside one."""
    content, place = path.read_bytes(), HEADER
    if content[:4] != MAGIC:
        raise UserError(f"{path.name} is no transaction log of W&B")
    records: list[bytes] = []
    begun = b""
    while place < len(content):
        room = BLOCK - place % BLOCK
        if room < PIECE.size:
            place += room
            continue
        if place + PIECE.size > len(content):
            return records, True
        checksum, size, kind = PIECE.unpack_from(content, place)
        if (checksum, size, kind) == (0, 0, 0):  # the rest of a block that was left empty
            place += room
            continue
        piece = content[place + PIECE.size : place + PIECE.size + size]
        if len(piece) < size or zlib.crc32(piece, zlib.crc32(bytes([kind]))) != checksum:
            return records, True
        place, begun = place + PIECE.size + size, begun + piece
        if kind in (WHOLE, LAST):
            records.append(begun)
            begun = b""
    return records, bool(begun)


def _pieces(records: Iterable[bytes]) -> Iterator[bytes]:
    place = HEADER
    for record in records:
        begun = False
        while True:
            room = BLOCK - place % BLOCK
            if room < PIECE.size:
                yield bytes(room)
                place, room = place + room, BLOCK
            piece, record = record[: room - PIECE.size], record[room - PIECE.size :]
            kind = (MIDDLE if record else LAST) if begun else (FIRST if record else WHOLE)
            yield PIECE.pack(zlib.crc32(piece, zlib.crc32(bytes([kind]))), len(piece), kind) + piece
            place, begun = place + PIECE.size + len(piece), True
            if not record:
                break
