"""What this machine has, and what that rules in or out."""

import importlib.metadata
import netrc
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlparse

SMALLEST: dict[str, Any] = {
    "data.corpus": "markov", "data.sequence_length": 16, "data.validation_sequences": 4, "model.hidden_size": 16,
    "model.num_layers": 1, "model.num_heads": 1, "model.head_dim": 16, "model.num_experts": 2, "model.expert_width": 8,
    "trainer.steps": 2, "trainer.batch_size": 4, "trainer.validate_every": 0, "trainer.strategy": "deepspeed",
    "deepspeed.stage": 2, "deepspeed.expert_parallel": 2, "optimizer.warmup_steps": 1,
}  # fmt: skip


class Finding(NamedTuple):
    """One thing looked for: whether it is there, what was found, and what follows for the user."""

    name: str
    ok: bool
    found: str
    means: str


def examine() -> list[Finding]:
    """Look at everything; a check that breaks is a finding of its own, with the reason."""
    findings = []
    for name, check in CHECKS.items():
        try:
            findings.append(check())
        except Exception as error:
            line = f"{type(error).__name__}: {error}".splitlines()[0]
            findings.append(Finding(name, False, line, "this check itself failed: look at the reason"))
    return findings


def _python() -> Finding:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    found = f"Python {platform.python_version()}, {platform.system()} {platform.machine()}, {cores} cores"
    return Finding("python", True, found, f"local sweeps run {cores} workers by default, one core each")


def _torch() -> Finding:
    import torch

    found = f"torch {torch.__version__}, {torch.get_num_threads()} threads"
    return Finding("torch", True, found, "training runs")


def _cuda() -> Finding:
    import torch

    if not torch.cuda.is_available():
        built = "built for CUDA, no device" if torch.version.cuda else "CPU build"
        return Finding("cuda", False, built, "runs train on the CPU; use tiny presets, or a cluster for proxies")
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    bf16 = "bf16 supported" if torch.cuda.is_bf16_supported() else "no bf16: keep trainer.precision=fp32"
    return Finding("cuda", True, ", ".join(names), f"runs train on the GPU, workers share them in turn; {bf16}")


def _deepspeed() -> Finding:
    """Train two steps in two processes, each with half of the experts: what else works is a matter of degree."""
    import time

    from core.config import to_yaml
    from core.settings import build
    from core.training.launch import RankFailedError, launch

    version = importlib.metadata.version("deepspeed")
    config = build(SMALLEST)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as place:
        (Path(place) / "config.yaml").write_text(to_yaml(config))
        try:
            launch(config, Path(place), 2)
        except RankFailedError as error:
            return Finding("deepspeed", False, f"deepspeed {version}: {error}", "runs train on one device")
    backend = "nccl" if _has_cuda() else "gloo"
    found = f"deepspeed {version}: ZeRO-2, 2 processes, experts halved, over {backend}"
    means = f"ablate train --devices N works (2 steps, start included: {time.perf_counter() - began:.0f} s)"
    return Finding("deepspeed", True, found, means)


def _wandb() -> Finding:
    version = importlib.metadata.version("wandb")
    mode = os.environ.get("WANDB_MODE")
    if mode:
        return Finding("wandb", mode != "disabled", f"wandb {version}, WANDB_MODE={mode}", f"runs are mirrored {mode}")
    if _wandb_logged_in():
        return Finding("wandb", True, f"wandb {version}, logged in", "runs are mirrored online")
    return Finding("wandb", True, f"wandb {version}, not logged in", "runs are mirrored offline; `wandb sync` later")


def _slurm() -> Finding:
    if not shutil.which("sbatch"):
        return Finding("slurm", False, "sbatch not found", "sweeps run on this machine only")
    answer = subprocess.run(["sinfo", "-h", "-o", "%P %D"], capture_output=True, text=True, timeout=10)
    if answer.returncode:
        return Finding("slurm", False, answer.stderr.strip().splitlines()[0], "Slurm is installed but doesn't answer")
    return Finding(
        "slurm", True, "; ".join(answer.stdout.split("\n")).strip("; "), "`ablate run --launcher slurm` submits sweeps"
    )


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def _wandb_logged_in() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    path = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    try:
        return path.is_file() and netrc.netrc(path).authenticators(host) is not None
    except netrc.NetrcParseError:
        return False


CHECKS: dict[str, Callable[[], Finding]] = {
    "python": _python,
    "torch": _torch,
    "cuda": _cuda,
    "deepspeed": _deepspeed,
    "wandb": _wandb,
    "slurm": _slurm,
}


def as_json(findings: list[Finding]) -> list[dict[str, Any]]:
    """The findings as plain dictionaries."""
    return [finding._asdict() for finding in findings]
