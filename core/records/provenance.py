"""Provenance of a run: code, packages, host, device, job."""

import hashlib
import os
import platform
import socket
import subprocess
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from core.records.run_record import write_atomically
from core.records.versions import source_sha256

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
        "packages": _versions(),
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
    root = Path(__file__).resolve().parents[2]
    return root if (root / ".git").exists() else None


def commit() -> str | None:
    """The commit of this code; None outside of its repository."""
    root = _root()
    try:
        return None if root is None else _output("git", "-C", str(root), "rev-parse", "HEAD").decode().strip()
    except (OSError, subprocess.SubprocessError):
        return None


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
    root = _root()
    if root is None:
        return None
    command = ("git", "-C", str(root), "diff", "HEAD", "--no-ext-diff", "--no-textconv", "--no-color", "--binary")
    try:
        content = _output(*command)
    except (OSError, subprocess.SubprocessError):
        return None
    return (hashlib.sha256(content).hexdigest(), content) if content else None


def _output(*command: str) -> bytes:
    return subprocess.run(command, capture_output=True, check=True, timeout=30).stdout


@cache
def _driver() -> str | None:
    try:
        found = _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader").decode().split()
    except (OSError, subprocess.SubprocessError):
        return None
    return found[0] if found else None


@cache
def _versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found
