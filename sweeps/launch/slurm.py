"""A sweep on a Slurm cluster: one array of long-lived workers, written as a batch script and submitted.

<out>/<study>/slurm/<number>/
    job.sbatch    the script; `sbatch job.sbatch` does what `ablate run` does
    job.json      the resolved plan, and which trainer
    storage       the ledger's URL, which may hold a password: only its owner can read it
    log-*.txt     what each array task printed
"""

import json
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from core.config.run import RunConfig
from core.errors import UserError
from core.records import run_record
from core.runtime.child_process import SOURCE_ROOT
from sweeps.kinds import operations_of
from sweeps.launch.launcher import Submission
from sweeps.launch.pool import TRAINER, job_of
from sweeps.launch.slurm_request import CPUS, Request, clock, seconds
from sweeps.runs import slurm_jobs
from sweeps.storage.storage import choose_url, open_storage
from sweeps.storage.submissions import JOB, STORAGE_FILE, SUBMISSIONS, job_name, new_folder, next_number, write_secret
from sweeps.studies.plan import Sweep

SCRIPT = "job.sbatch"
LEAD_S = 120  # before the time limit: for a checkpoint, and for Slurm to see to it (it is up to a minute late)
MOST_FAILED_STARTS = 3
NO_CPUS = "no CPUs are asked for, and Slurm gives a task one as a rule: --cpus-per-run N asks for N a run"

# A worker gets Slurm's signals itself, as a job step; the script has only to outlive it. It replaces one that was killed (for
# memory, say) as long as each has claimed a run: the ledger gives up a run that keeps killing its workers.
TEMPLATE = """\
#!/bin/bash
{options}
stopping=
trap 'stopping=1' TERM USR1
{setup}
export PYTHONPATH={root}"${{PYTHONPATH:+:$PYTHONPATH}}"
export ABLATE_CLAIMED="$(mktemp)"
failures=0
while :; do
  srun --ntasks=1 --mpi=none ${{SLURM_CPUS_PER_TASK:+--cpus-per-task="$SLURM_CPUS_PER_TASK"}} \\
    {python} -P -m sweeps.launch.task {folder} </dev/null &
  worker=$!
  status=0
  while kill -0 "$worker" 2>/dev/null; do wait "$worker"; status=$?; done
  if [ "$stopping" ] || [ "$status" -eq 0 ] || [ "$status" -eq 2 ]; then break; fi
  if [ -s "$ABLATE_CLAIMED" ]; then failures=0; : >"$ABLATE_CLAIMED"; else failures=$((failures + 1)); fi
  if [ "$failures" -ge {most} ]; then break; fi
  echo "the worker ended with status $status: starting another" >&2
done
rm -f "$ABLATE_CLAIMED"
exit "$status"
"""


def submit(
    plan: Sweep,
    out: Path,
    request: Request,
    *,
    storage_url: str | None = None,
    retry_failed: bool = False,
    dry_run: bool = False,
    trainer: str = TRAINER,
) -> Submission | None:
    """Queue what isn't recorded, write the batch script, and submit it; None where nothing waits.

    With `dry_run` nothing is queued, written nor submitted. Raises UserError for what Slurm refuses, and where it isn't
    installed.
    """
    gpus, notes = gpus_of(plan.study_name, plan.devices, plan.configs, request)
    out = out.absolute()
    study = out / plan.study_name
    url = choose_url(storage_url, out, study)
    if not dry_run and not slurm_jobs.is_installed():
        slurm_jobs.call("sbatch")
    storage = None if dry_run else open_storage(url)
    runs, most = operations_of(plan.kind).demand(plan, out, storage, retry_failed=retry_failed)
    if not most:
        return None
    tasks = min(most, request.array_parallelism)
    lead_s = LEAD_S if request.time is None else max(1, min(LEAD_S, seconds(request.time) // 4))
    name = job_name(plan.study_name, out, dry_run=dry_run)
    folder = study / SUBMISSIONS / next_number(study) if dry_run else new_folder(study)
    job = None
    try:
        text = script(request, folder, tasks=tasks, gpus=gpus, name=name, lead_s=lead_s)
        if not dry_run:
            content = job_of(plan, out, trainer) | {"lead_s": lead_s}
            run_record.write_atomically(folder / JOB, json.dumps(content))
            write_secret(folder / STORAGE_FILE, url)
            run_record.write_atomically(folder / SCRIPT, text)
            job = slurm_jobs.submit(str(folder / SCRIPT))
    except BaseException:
        if not dry_run:
            shutil.rmtree(folder)
        raise
    return Submission(folder / SCRIPT, text, tasks, runs, job, notes)


def script(request: Request, folder: Path, *, tasks: int, gpus: int | None, name: str, lead_s: int) -> str:
    """The batch script."""
    pattern = str(folder / "log-%A_%a.txt")
    if not pattern.isprintable() or not str(Path.cwd()).isprintable():
        raise UserError(f"{folder}: a folder whose name can't stand in a batch script; use another --out")
    options: dict[str, str | None] = {
        "job-name": name,
        "array": f"0-{tasks - 1}",
        "partition": request.partition,
        "account": request.account,
        "qos": request.qos,
        "time": clock(request.time) if request.time else None,
        "nodes": "1",
        "ntasks": "1",
        "cpus-per-task": str(request.cpus_per_run) if request.cpus_per_run else None,
        "gres": f"gpu:{gpus}" if gpus else None,
        "chdir": str(Path.cwd()),
        "output": str(folder).replace("%", "%%") + "/log-%A_%a.txt",
        "open-mode": "append",
        "requeue": "",
        "signal": f"USR1@{lead_s}",
    }
    if gpus and "gres" in request.sbatch:  # of other things than GPUs
        options["gres"] = f"gpu:{gpus},{request.sbatch['gres']}"
    options = {**request.sbatch, **{key: value for key, value in options.items() if value is not None}}
    return TEMPLATE.format(
        options=option_lines(options),
        setup=request.setup_lines(),
        root=shlex.quote(str(SOURCE_ROOT)),
        python=request.wrapped(shlex.quote(sys.executable)),
        folder=shlex.quote(str(folder)),
        most=MOST_FAILED_STARTS,
    )


def option_lines(options: Mapping[str, str | None]) -> str:
    """The `#SBATCH` lines of a script's options; those of None are left out, those of "" have no value."""
    lines = []
    for key, value in options.items():
        if value is not None:
            # Slurm reads quotes as a shell does, but takes backslashes away inside them too.
            quoted = shlex.quote(value.replace("\\", "\\\\"))
            lines.append(f"#SBATCH --{key}={quoted}" if value else f"#SBATCH --{key}")
    return "\n".join(lines)


def gpus_of(
    study: str, devices: int, configs: Sequence[RunConfig], request: Request
) -> tuple[int | None, tuple[str, ...]]:
    """GPUs of each array task, and what to tell of them and of CPUs.

    A run on one device that doesn't say "cpu" gets one where the partition has GPUs. Raises UserError where other than its
    runs need were asked for.
    """
    notes = [] if request.cpus_per_run or any(key in request.sbatch for key in CPUS) else [NO_CPUS]
    on_cpu = all(config.trainer.accelerator == "cpu" for config in configs)
    if devices > 1:
        if request.gpus_per_run not in (None, devices, *([0] if on_cpu else [])):
            raise UserError(f"gpus-per-run: a run of {study} needs {devices} devices: use {devices}, or leave it out")
        asked = request.gpus_per_run if on_cpu or request.of_gpus else devices
        return asked or None, tuple(notes)
    if on_cpu or request.gpus_per_run is not None or request.of_gpus:
        return request.gpus_per_run or None, tuple(notes)
    where = f"partition {request.partition}" if request.partition else "the default partition"
    if slurm_jobs.has_gpus(request.partition):
        note = f"{where} has GPUs: one is asked for each run (--gpus-per-run N asks for another number, 0 for none)"
        return 1, (note, *notes)
    return None, ("no GPU is asked for: --gpus-per-run 1 asks for one a run", *notes)
