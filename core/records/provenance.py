"""Provenance of a run: code, packages, host, device, job and data; and which version of the code trained which runs.

The fingerprint of a run's data is its corpus's, then `|name=digest` of each file that its config names (core.data.inputs).
"""

import hashlib
import os
import platform
import socket
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib import metadata
from pathlib import Path
from types import MappingProxyType
from typing import Any

from core.records.run_record import RunRecord, write_atomically
from core.records.study_history import spans

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("config", "records", "runtime", "data", "diffusion", "model", "training")  # of core, folders in them included
PACKAGES = (
    "torch",
    "lightning",
    "deepspeed",
    "optuna",
    "wandb",
    "omegaconf",
    "numpy",
    "scipy",
    "tokenizers",
    "safetensors",
)
STAGE = "stage:"  # before the arm hash of a first stage, whose weights lie in the run's own folder
SEPARATOR = "|"  # between its parts; no corpus's own fingerprint has one
NAMED_FILES = {"trainer.initial_weights": ("trainer", "initial_weights"), "deepspeed.json": ("deepspeed", "json")}
UNKNOWN = "unknown"
DIFFS = "diffs"
LARGEST_DIFF = 4_000_000  # bytes; of a longer one the record has the hash alone
SLURM = {
    "job": "SLURM_JOB_ID",
    "array_job": "SLURM_ARRAY_JOB_ID",
    "array_task": "SLURM_ARRAY_TASK_ID",
    "restarts": "SLURM_RESTART_COUNT",
}


def describe(device: str) -> dict[str, Any]:
    """Git commit, hashes of the tree's changes and of the source that trains, packages, host and device ("cpu", "cuda")."""
    import torch  # seconds, which whoever reads or keeps diffs can do without

    name = torch.cuda.get_device_name(device) if device == "cuda" else platform.machine()
    return {
        **code(),
        "packages": {name: _version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "host": socket.gethostname(),
        "device": f"{device}: {name}",
        **({"cuda": torch.version.cuda, "driver": _driver()} if device == "cuda" else {}),
        "threads": torch.get_num_threads(),
    }


def code() -> dict[str, Any]:
    """The version of the code: its commit, what the tree differs by, and a hash of the source that trains."""
    return _git() | {"source_sha256": source_sha256()}


def slurm_job() -> dict[str, Any]:
    """{"slurm": {...}}: the job, array and task that this process belongs to; empty outside Slurm."""
    found = {name: os.environ[variable] for name, variable in SLURM.items() if variable in os.environ}
    return {"slurm": found} if found else {}


def save_diff(out: Path) -> Path | None:
    """Keep what the code's tree differs by from its commit, once: <out>/diffs/<sha256>.patch.

    Tracked files alone: what git doesn't know may hold secrets. Returns None for a clean tree, no repository, or a diff
    that is too long.
    """
    found = _difference()
    if found is None or len(found[1]) > LARGEST_DIFF:
        return None
    path = out / DIFFS / f"{found[0]}.patch"
    if not path.exists():
        write_atomically(path, found[1].decode("utf-8", errors="surrogateescape"))
    return path


def _root() -> Path | None:
    """The repository of this code; None where it is installed as a package: an outer one would be another project's."""
    return ROOT if (ROOT / ".git").exists() else None


def commit() -> str | None:
    """The commit of this code; None outside of its repository."""
    found = _of_git("rev-parse", "HEAD")
    return None if found is None else found.decode().strip()


@cache
def _git() -> dict[str, Any]:
    known = commit()
    if known is None:
        return {"git_commit": None, "git_dirty": None, "git_diff_sha256": None}
    found = _difference()
    return {"git_commit": known, "git_dirty": found is not None, "git_diff_sha256": found and found[0]}


@cache
def _difference() -> tuple[str, bytes] | None:
    """The tree's difference from its commit, as this process first saw it, with its hash."""
    content = _of_git("diff", "HEAD", "--no-ext-diff", "--no-textconv", "--no-color", "--binary")
    return (hashlib.sha256(content).hexdigest(), content) if content else None


def _of_git(*command: str) -> bytes | None:
    root = _root()
    return None if root is None else _output("git", "-C", str(root), *command)


def _output(*command: str) -> bytes | None:
    """What a command prints; None where it isn't there or fails."""
    try:
        return subprocess.run(command, capture_output=True, check=True, timeout=30).stdout
    except (OSError, subprocess.SubprocessError):
        return None


@cache
def _driver() -> str | None:
    found = _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    return found.decode().split()[0] if found and found.strip() else None


@cache
def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


@cache
def source_sha256() -> str:
    """Hash of the source files that train a run, as this process first found them."""
    found = hashlib.sha256()
    core = ROOT / "core"
    paths = [*sorted(core.glob("*.py")), *(path for room in ROOMS for path in sorted((core / room).rglob("*.py")))]
    for path in [*paths, ROOT / "sweeps" / "launch" / "worker.py"]:
        content = path.read_bytes().replace(b"\r\n", b"\n")  # version control may change line ends
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


def data_of(fingerprint: str) -> str:
    """The corpus's part of a fingerprint: runs that start from other weights may well be compared on the same data."""
    return fingerprint.partition(SEPARATOR)[0]


def lacks_files(fingerprint: str, wanted: str) -> bool:
    """True if a fingerprint is of the wanted data, by a version that didn't look into the files that the config names."""
    return SEPARATOR in wanted and fingerprint == data_of(wanted)


def named_files(config: Mapping[str, Any]) -> str:
    """The fields of a record's config that name a file, in words."""
    found = ((key, (config.get(part) or {}).get(name)) for key, (part, name) in NAMED_FILES.items())
    return " and ".join(key for key, path in found if path and not path.startswith(STAGE))
