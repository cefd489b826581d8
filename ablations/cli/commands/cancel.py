"""`ablate cancel`: stop a study: its Slurm jobs and its processes on this machine."""

from ablations.cli.command import Command

COMMAND = Command("cancel", study=True, checks=("runs",), changes="ignored")
