"""Real small runs, recorded once for a benchmark to replay; what an interrupted recording has trained is kept."""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from core.config.run import RunConfig
from core.records.run_record import FILE_NAME, RunRecord, read


def main(module: str, doc: str | None, configs: Sequence[RunConfig], data: Path, gather: Callable[..., Any]) -> None:
    """The command line of a recording. gather: the runs' records, in the order of their configs -> the document."""
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description=doc)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--work", type=Path, default=Path("runs") / data.stem)
    parser.add_argument("--out", type=Path, default=data)
    parser.add_argument("--share", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.share is not None:
        return _record_share(configs, options.share, options.workers, options.work)
    command = [sys.executable, "-m", module, "--workers", str(options.workers), "--work", str(options.work)]
    children = [subprocess.Popen([*command, "--share", str(share)]) for share in range(options.workers)]
    ended = [child.wait() for child in children]
    if any(ended):
        raise SystemExit("a recording process failed")
    found = [read(options.work / str(index) / FILE_NAME) for index in range(len(configs))]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(gather(found), separators=(",", ":")) + "\n")
    return None


def described(found: Sequence[RunRecord]) -> dict[str, Any]:
    """Where recorded runs come from."""
    provenance = found[0].provenance
    return {
        "recorded": time.strftime("%Y-%m-%d"),
        "git_commit": provenance.get("git_commit"),
        "packages": provenance.get("packages"),
        "data_fingerprint": found[0].data_fingerprint,
        "parameters": found[0].parameters,
        "seconds_per_run": round(sum(record.wall_time_s for record in found) / len(found), 2),
    }


def _record_share(configs: Sequence[RunConfig], number: int, workers: int, work: Path) -> None:
    """Train every `workers`-th run that isn't recorded yet."""
    import torch

    from core.training.run import train

    torch.set_num_threads(1)
    for index in range(number, len(configs), workers):
        folder = work / str(index)
        if not (folder / FILE_NAME).exists():
            train(configs[index], folder)
            (folder / "model.safetensors").unlink(missing_ok=True)
