"""`ablate sync`: send runs that were logged offline to W&B, once each."""

from ablations.cli.command import Command

COMMAND = Command("sync", study=True, json=True, checks=("runs",))
