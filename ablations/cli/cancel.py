"""`ablate cancel`: stop a sweep here or on the cluster; what is recorded stays. Nothing here imports torch."""

import argparse
import sys

from ablations.cli import studies as agenda
from ablations.cli.recorded import started_folder
from core.errors import UserError
from core.runtime.printable import say
from core.runtime.units import counted
from sweeps.launch import running_sweeps as presence
from sweeps.runs import slurm as scheduler
from sweeps.storage.submissions import job_name, submissions
from sweeps.studies.study import CONFIRM


def run_cancel(arguments: argparse.Namespace) -> int:
    """Stop a sweep: its Slurm jobs, and its processes on this machine. What is recorded stays."""
    study, is_search = started_folder(arguments)
    folder = arguments.out / study
    ended = 0
    if submissions(folder):
        name = job_name(study, arguments.out)
        try:
            tasks = scheduler.tasks(name=name)
            if tasks:
                scheduler.cancel(name)
        except scheduler.SlurmError as error:
            raise UserError(f"Slurm doesn't cancel {name}: {error}") from None
        ended = len(tasks)
    # A search and its confirmation are one process after another, and may be two at once.
    stopped = [
        presence.stop(place) for place in (folder, *([folder.with_name(f"{study}.{CONFIRM}")] if is_search else []))
    ]
    mine = {process for processes, _ in stopped for process in processes}
    say(
        f"{study}: {counted(ended, 'array task')} cancelled, {counted(len(mine), 'sweep')} on this machine asked to stop"
    )
    for host in sorted({host for _, hosts in stopped for host in hosts}):
        say(f"one runs on {host}: cancel it there", file=sys.stderr)
    if ended or mine:
        say(f"what is recorded stays; `{agenda.command('run', arguments)}` trains the rest")
    return 0
