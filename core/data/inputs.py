"""Inputs of a run beside its config, identified by content: its corpus, and the files that the config names.

A path says where a file lies and not what is in it; the same path with other content is another run.
"""

import os
from functools import lru_cache

from core.config.run import RunConfig
from core.data.corpora import load
from core.errors import UserError
from core.records.provenance import SEPARATOR, STAGE
from core.runtime.paths import expanded, file_sha256

SMALL = 2**24  # bytes of a file that is read again each time


def fingerprint(config: RunConfig) -> str:
    """Equal only for equal data in equal order and equal files: the corpus's fingerprint, then `|name=digest` for each file.

    A config that names no file has its corpus's fingerprint alone. Raises UserError for a file that can't be read.
    """
    engine = config.deepspeed.json
    return learned_from(config) + (f"{SEPARATOR}deepspeed={_digest('deepspeed.json', engine)}" if engine else "")


def learned_from(config: RunConfig) -> str:
    """The same without the engine's settings, which may change while a run goes on from a checkpoint."""
    weights = config.trainer.initial_weights
    data = load(config.data).fingerprint
    if weights is None or weights.startswith(STAGE):
        return data
    return f"{data}{SEPARATOR}weights={_digest('trainer.initial_weights', weights)}"


def _digest(key: str, path: str) -> str:
    place = expanded(path)
    try:
        stat = os.stat(place)
        if stat.st_size <= SMALL:
            return file_sha256(place)[:16]
        return _large(os.path.abspath(place), stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
    except OSError as error:
        raise UserError(f"{key}={path} can't be read: {error.strerror}") from None


@lru_cache(maxsize=64)
def _large(path: str, inode: int, size: int, modified_ns: int, changed_ns: int) -> str:
    """The digest of a file; all but its path are there so that a file that was written since is read again."""
    return file_sha256(path)[:16]
