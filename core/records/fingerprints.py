"""A run's fingerprint, read: its corpus's, then `|name=digest` of each file that its config names (core.data.inputs)."""

from collections.abc import Mapping
from typing import Any

STAGE = "stage:"  # before the arm hash of a first stage, whose weights lie in the run's own folder
SEPARATOR = "|"  # no corpus's own fingerprint has one
FILES = {"trainer.initial_weights": ("trainer", "initial_weights"), "deepspeed.json": ("deepspeed", "json")}


def data_of(fingerprint: str) -> str:
    """The corpus's part of a fingerprint: runs that start from other weights may well be compared on the same data."""
    return fingerprint.partition(SEPARATOR)[0]


def lacks_files(fingerprint: str, wanted: str) -> bool:
    """True if a fingerprint is of the wanted data, by a version that didn't look into the files that the config names."""
    return SEPARATOR in wanted and fingerprint == data_of(wanted)


def named_files(config: Mapping[str, Any]) -> str:
    """The fields of a record's config that name a file, in words."""
    found = ((key, (config.get(part) or {}).get(name)) for key, (part, name) in FILES.items())
    return " and ".join(key for key, path in found if path and not path.startswith(STAGE))
