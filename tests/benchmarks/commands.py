"""CPU seconds that commands take, their children's included, beside 24 and 2,000 recorded runs: what a user waits for."""

import argparse
import hashlib
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from ablations.cli import studies
from core.config.run import to_dict
from core.records import run_record
from core.records.run_record import RunRecord
from sweeps.runs.folders import run_folder, write_design
from sweeps.studies.resolve import plan
from sweeps.studies.study import first_seeds

GOLDEN = Path(__file__).parents[1] / "analysis" / "golden" / "records.jsonl"
NAME, SIZE, ARMS = "balance", "quick", 4
SIZES = (24, 2000)
WEIGHTS = b"not read, only hashed" * 1000
ROUNDS = 3


class Row(NamedTuple):
    """A command, and the CPU seconds that it may take beside few and beside many records; None where it isn't measured.

    status: what it exits with.
    """

    title: str
    arguments: tuple[str, ...]
    limits: tuple[float | None, float | None]
    status: int = 0


OF_STUDY = (NAME, "--size", SIZE)
ROWS = (
    Row("--help", ("--help",), (0.5, 0.5)),
    Row("--version", ("--version",), (0.5, 0.5)),
    Row("run, unknown ablation", ("run", "balence"), (0.5, 0.5), 2),
    Row("run, unknown key", ("run", *OF_STUDY, "trainer.step=3"), (0.5, 0.5), 2),
    Row("train, unknown preset", ("train", "tinny"), (0.5, 0.5), 2),
    Row("sample, no model", ("sample", "nowhere"), (0.5, 0.5), 2),
    Row("status", ("status", *OF_STUDY), (0.5, 0.8)),
    Row("list", ("list",), (1.0, 1.5)),
    Row("plan --no-calibration", ("plan", *OF_STUDY, "--no-calibration"), (1.5, 1.5)),
    Row("describe", ("describe", "llada_moe_7b_a1b"), (1.5, 1.5)),
    Row("layout", ("layout", "llada_moe_7b_a1b", "--cluster", "64xH100-80G"), (1.5, 1.5)),
    Row("report", ("report", *OF_STUDY), (2.5, 4.0)),
    Row("verify", ("verify", *OF_STUDY), (1.5, 5.0)),
    Row("first run, adopting", ("run", *OF_STUDY), (None, 5.0)),
    Row("doctor", ("doctor",), (6.0, None)),
)


def leave_study(out: Path, count: int) -> None:
    """Records of `count` made-up runs of a declared ablation, as real ones are: config, hashes, curves, telemetry."""
    template = RunRecord.from_json(GOLDEN.read_text(encoding="utf-8").splitlines()[0])
    _, ablation = studies.resolve(NAME)
    planned = plan(NAME, first_seeds(ablation, count // ARMS), size=SIZE)
    write_design(out / planned.study_name, planned.design)
    chance = random.Random(0)
    blocks = [chance.gauss(0, 0.3) for _ in planned.design.seeds]
    for run in planned.runs:
        folder = run_folder(planned, run, out)
        folder.mkdir(parents=True)
        (folder / "model.safetensors").write_bytes(WEIGHTS)
        shift = blocks[run.seed] + chance.gauss(0, 0.02)
        record = replace(
            template,
            run_hash=run.run_hash,
            arm_hash=run.arm_hash,
            seed=run.seed,
            config=to_dict(run.config),
            metrics=template.metrics | {"val/nelbo": template.metrics["val/nelbo"] + shift},
            validation=template.validation
            | {"val/nelbo": [value + shift for value in template.validation["val/nelbo"]]},
            data_fingerprint=run.fingerprint,
            provenance=template.provenance
            | {"weights_sha256": hashlib.sha256(WEIGHTS).hexdigest(), "git_dirty": False, "git_diff_sha256": None},
            study=planned.study_field(run),
        )
        (folder / run_record.FILE_NAME).write_text(record.to_json() + "\n", encoding="utf-8")


def measure(rounds: int = ROUNDS) -> list[dict[str, Any]]:
    """CPU seconds of each command beside few and many records, the least of some rounds; with the limits."""
    rows: list[dict[str, Any]] = [{"command": row.title, "limits": row.limits, "seconds": []} for row in ROWS]
    for place, count in enumerate(SIZES):
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "runs"
            leave_study(out, count)
            _run(_first(out, count), 0)  # the journal that later commands read
            for row, found in zip(ROWS, rows, strict=True):
                if row.limits[place] is None:
                    found["seconds"].append(None)
                    continue
                taken = []
                for _ in range(rounds):
                    if row.title.startswith("first run"):
                        for journal in out.glob("journal.log*"):
                            journal.unlink()
                    arguments = _first(out, count) if row.title.startswith("first run") else row.arguments
                    taken.append(_run([*arguments, *_out(row, out)], row.status))
                found["seconds"].append(min(taken))
    return rows


def _first(out: Path, count: int) -> list[str]:
    return ["run", *OF_STUDY, "--seeds", str(count // ARMS), "--out", str(out)]


def _out(row: Row, out: Path) -> list[str]:
    own = row.title.startswith("first run") or row.arguments[0].startswith("-")
    return [] if own else ["--out", str(out)]


def _run(arguments: Sequence[str], status: int) -> float:
    """The CPU seconds of one command and of all processes that it waited for."""
    with Path(os.devnull).open("w") as nowhere:
        command = [sys.executable, "-m", "ablations", *arguments]
        handles = [(os.POSIX_SPAWN_DUP2, nowhere.fileno(), handle) for handle in (1, 2)]
        process = os.posix_spawn(sys.executable, command, os.environ, file_actions=handles)
    _, ended, usage = os.wait4(process, 0)
    if os.waitstatus_to_exitcode(ended) != status:
        raise RuntimeError(f"ablate {' '.join(arguments)}: status {os.waitstatus_to_exitcode(ended)}, not {status}")
    return usage.ru_utime + usage.ru_stime


def table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The measurement as Markdown: seconds, and what they may be."""
    heads = [f"{count:,} records" for count in SIZES]
    lines = [f"| CPU seconds | {' | '.join(heads)} |", "|---|---|---|"]
    for row in rows:
        cells = [_cell(*pair) for pair in zip(row["seconds"], row["limits"], strict=True)]
        lines.append(f"| {row['command']} | {' | '.join(cells)} |")
    return lines


def _cell(seconds: float | None, limit: float | None) -> str:
    if seconds is None or limit is None:
        return ""
    return f"{seconds:.2f} of {limit:g}{'' if seconds <= limit else ' (over)'}"


def main() -> None:
    """Leave a study in a folder, to look at its commands one by one."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.commands", description=main.__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--records", type=int, default=SIZES[1])
    options = parser.parse_args()
    shutil.rmtree(options.out, ignore_errors=True)
    leave_study(options.out, options.records)


if __name__ == "__main__":
    main()
