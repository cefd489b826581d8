"""Citation of a report: the version of the software, the commit and the data."""

from collections.abc import Mapping
from importlib import metadata

PACKAGE = "moe-diffusion-ablations"


def version() -> str:
    """The version of the software that writes the report."""
    return metadata.version(PACKAGE)


def origin(provenance: Mapping[str, list[str]]) -> str:
    """Commit and data in a line, as a bibliography's note has them."""
    facts = [("commit", "git_commit"), ("data", "data fingerprint")]
    parts = [f"{word} {', '.join(provenance[key])}" for word, key in facts if provenance.get(key)]
    return "; ".join(parts).translate(str.maketrans("", "", "{}\\"))
