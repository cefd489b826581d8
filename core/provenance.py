"""Where a run came from: code, packages, host."""

import platform
import socket
import subprocess
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("torch", "lightning", "deepspeed", "optuna", "wandb", "omegaconf", "numpy", "scipy")


def describe(device: torch.device) -> dict[str, Any]:
    """Git commit and whether the tree differs from it, package versions, Python, host and device."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {
        **_git(),
        "packages": _versions(),
        "python": platform.python_version(),
        "host": socket.gethostname(),
        "device": f"{device.type}: {name}",
        "threads": torch.get_num_threads(),
    }


@cache
def _git() -> dict[str, Any]:
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():  # installed as a package: an outer repository's commit would be another project's
        return {"git_commit": None, "git_dirty": None}
    try:
        commit = _output("git", "-C", str(root), "rev-parse", "HEAD")
        dirty = bool(_output("git", "-C", str(root), "status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.SubprocessError):
        return {"git_commit": None, "git_dirty": None}
    return {"git_commit": commit, "git_dirty": dirty}


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()


@cache
def _versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found
