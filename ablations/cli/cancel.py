"""`ablate cancel`: stop a sweep here or on the cluster; what is recorded stays. Nothing here imports torch."""

import argparse
import sys

from ablations.cli import studies
from ablations.cli.declarations import started_folder
from core.runtime.printable import say
from sweeps.kinds import operations_of
from sweeps.launch.launcher import launchers


def run_cancel(arguments: argparse.Namespace) -> int:
    """Stop a sweep: its Slurm jobs, and its processes on this machine. What is recorded stays."""
    study, kind = started_folder(arguments)
    folder = arguments.out / study
    # A search and its confirmation are one process after another, and may be two at once.
    folders = [arguments.out / name for name in operations_of(kind).folders(study)]
    scheduled_first = sorted(launchers().values(), key=lambda launcher: launcher.here)
    done = [launcher.cancel(folder, folders) for launcher in scheduled_first]
    say(f"{study}: {', '.join(each.text for each in done if each.text)}")
    for note in (note for each in done for note in each.notes):
        say(note, file=sys.stderr)
    if any(each.count for each in done):
        say(f"what is recorded stays; `{studies.command('run', arguments)}` trains the rest")
    return 0
