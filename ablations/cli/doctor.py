"""`ablate doctor`: what this machine has, and what that rules in or out.

    python -P -m ablations.cli.doctor CHECK

Checks that import something heavy are made in processes of their own, side by side, each with a time limit.
"""

import argparse
import importlib.metadata
import json
import netrc
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlparse

from ablations.cli.terminal import show
from core.config.loading import build
from core.config.run import to_yaml
from core.runtime.child_process import import_path, take_events_pipe
from core.runtime.forking import Process, begin, warm
from core.runtime.ranks import MODULES
from core.runtime.terminal import Terminal, line
from core.runtime.terminal_table import Column, Labelled
from core.runtime.units import counted
from sweeps.launch.machine import share_of_cores

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


def run_doctor(arguments: argparse.Namespace) -> int:
    """Print this machine's hardware and software, and what they allow."""
    return show([finding._asdict() for finding in examine()], arguments, _print)


def _print(findings: list[dict[str, Any]], out: Terminal) -> None:
    table = Labelled(None, (Column(folds=True, justify="left"), Column(folds=True, justify="left")))
    for finding in findings:
        mark = line("✓ ", "green") if finding["ok"] else line("– ", "yellow")
        table.add(mark + line(finding["name"], "bold"), line(finding["found"]), line(finding["means"], "dim"))
    out.print(table)


def examine(limits_s: dict[str, float] | None = None) -> list[Finding]:
    """Look at everything; a check that breaks or takes too long is a finding of its own, with the reason.

    limits_s: seconds of each check that has a process of its own (default: LIMITS_S).
    """
    limits_s = LIMITS_S if limits_s is None else limits_s
    with warm(("ablations.cli.doctor", *MODULES)) as template, tempfile.TemporaryDirectory() as place:
        apart = {}
        for name, limit_s in limits_s.items():
            with (Path(place) / name).open("wb") as log:
                process = begin(template, "ablations.cli.doctor", [name], os.environ | import_path(), log)
            apart[name] = process, threading.Timer(limit_s, _end, [process])
            apart[name][1].start()
        found = {name: _examine(name) for name in CHECKS if name not in apart}
        for name, (process, late) in apart.items():
            found[name] = _hear(name, process, late, Path(place) / name)
    return [found[name] for name in CHECKS]


def main(arguments: Sequence[str]) -> None:
    """Make one check and tell its finding as a JSON line."""
    tell = take_events_pipe()
    tell(**_examine(arguments[0])._asdict())


def _examine(name: str) -> Finding:
    try:
        return CHECKS[name]()
    except Exception as error:
        return _broken(name, f"{type(error).__name__}: {error}".splitlines()[0])


def _broken(name: str, reason: str) -> Finding:
    return Finding(name, False, reason, "this check itself failed: look at the reason")


def _hear(name: str, process: Process, late: threading.Timer, log: Path) -> Finding:
    """The finding of a check's process, which the timer ends."""
    assert process.stdin is not None and process.stdout is not None
    with process.stdin, process.stdout:
        line = process.stdout.readline()
        process.stdout.read()  # until it has ended
        ended_late = not late.is_alive()
        late.cancel()
        process.wait()
    if line.endswith(b"\n"):
        return Finding(**json.loads(line))
    if ended_late:
        return _broken(name, "no answer in time")
    said = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return _broken(name, said[-1] if said else "its process ended without a word")


def _end(process: Process) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:  # one that has just been forked leads no group yet, and has started nothing
        process.kill()


def _python() -> Finding:
    count = len(share_of_cores(0, 1))
    found = f"Python {platform.python_version()}, {platform.system()} {platform.machine()}, {count} cores"
    return Finding("python", True, found, f"local sweeps run {counted(count, 'worker')} by default, one core each")


def _torch() -> Finding:
    import torch

    return Finding("torch", True, f"torch {torch.__version__}", "training runs")


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
    import torch

    from core.training.rank_launcher import RankFailedError, launch  # loads torch

    version = importlib.metadata.version("deepspeed")
    config = build(SMALLEST)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as place:
        (Path(place) / "config.yaml").write_text(to_yaml(config))
        try:
            launch(config, Path(place), 2)
        except RankFailedError as error:
            return Finding("deepspeed", False, f"deepspeed {version}: {error}", "runs train on one device")
    backend = "nccl" if torch.cuda.is_available() else "gloo"
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


def _wandb_logged_in() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    path = Path(os.path.expanduser(os.environ.get("NETRC", "~/.netrc")))
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
LIMITS_S = {"torch": 60.0, "cuda": 60.0, "deepspeed": 180.0}  # of checks that import what they look at


if __name__ == "__main__":
    main(sys.argv[1:])
