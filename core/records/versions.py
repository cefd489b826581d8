"""Version of the code that trained a run: a hash of its source files or, in older records, the commit."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from core.records.design_changes import spans
from core.records.run_record import RunRecord

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("config", "records", "runtime", "data", "diffusion", "model", "training")  # of core, folders in them included
UNKNOWN = "unknown"


@cache
def source_sha256() -> str:
    """Hash of the source files that train a run, as they were when this process first asked; with or without git.

    Line ends are read as one character, as version control may change them.
    """
    found = hashlib.sha256()
    core = ROOT / "core"
    paths = [*sorted(core.glob("*.py")), *(path for room in ROOMS for path in sorted((core / room).rglob("*.py")))]
    for path in [*paths, ROOT / "sweeps" / "launch" / "worker.py"]:
        content = path.read_bytes().replace(b"\r\n", b"\n")
        found.update(f"{path.relative_to(ROOT).as_posix()} {len(content)}\n".encode() + content)
    return found.hexdigest()


def by_version(
    records: Iterable[RunRecord], code: Mapping[str, Any] = MappingProxyType({})
) -> dict[str, list[RunRecord]]:
    """Records by the code that trained them, in the order in which they ended: "source 0123456789ab", "commit 0123456789ab"
    where only that is known, or "unknown". A record that has no hash counts to the code whose commit and changes are its own.

    code: the provenance of another run, whose commit is known by it too.
    """
    ordered = sorted(records, key=lambda record: record.finished_at)
    known = [code, *(record.provenance for record in ordered)]
    sources = {_commit(each): _source(each) for each in known if _commit(each) and _source(each)}
    found: dict[str, list[RunRecord]] = {}
    for record in ordered:
        commit = _commit(record.provenance)
        name = _source(record.provenance) or sources.get(commit) or commit or UNKNOWN
        found.setdefault(name, []).append(record)
    return found


def mixture(records: Sequence[RunRecord], missing: int = 0, code: Mapping[str, Any] = MappingProxyType({})) -> str:
    """Note on runs of several or unknown versions of the code; empty if all are of one.

    missing: runs that are still to be trained, by the version that `code` is the provenance of.
    """
    found = by_version(records, code)
    parts = [f"{len(each)} by {_named(name)} ({_which(each)})" for name, each in found.items()]
    if missing and found and (name := _source(code) or UNKNOWN) not in found:
        parts.append(f"{missing} to be trained by {name}")
    if len(parts) < 2:
        lacking = f"Nothing says which version of the code trained these {len(records)} runs"
        return lacking if UNKNOWN in found else ""
    return f"Runs of {len(parts)} versions of the code are compared: {'; '.join(parts)}"


def _named(name: str) -> str:
    return "a version that isn't known" if name == UNKNOWN else name


def _which(records: Sequence[RunRecord]) -> str:
    """Name runs by their seeds, and by their arms where these are few."""
    arms = dict.fromkeys(str(record.study.get("arm")) for record in records)
    seeds = spans(sorted({record.seed for record in records}))
    return f"{', '.join(arms)}, seeds {seeds}" if len(arms) <= 2 else f"seeds {seeds}"


def _source(provenance: Mapping[str, Any]) -> str | None:
    found = provenance.get("source_sha256")
    return f"source {found[:12]}" if isinstance(found, str) else None


def _commit(provenance: Mapping[str, Any]) -> str | None:
    """The commit with the changes to it; None where either isn't known."""
    commit, changed = provenance.get("git_commit"), provenance.get("git_diff_sha256")
    dirty = provenance.get("git_dirty")
    if not isinstance(commit, str) or (dirty and not isinstance(changed, str)):
        return None
    return f"commit {commit[:12]}" + (f" with changes {str(changed)[:8]}" if dirty else "")
