"""`ablate cancel`: stop a sweep; what is recorded stays."""

from ablations.cli.command import Command

COMMAND = Command(
    "cancel",
    "stop a sweep: its Slurm jobs, and its processes on this machine",
    "ablations.cli.cancel:run_cancel",
    study=True,
    checks=("declaration", "runs"),
    changes="ignored",
)
