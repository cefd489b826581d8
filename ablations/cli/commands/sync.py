"""`ablate sync`: runs that were trained offline, sent to W&B once each."""

from ablations.cli.command import Command

COMMAND = Command(
    "sync",
    "send what was trained offline to W&B, once",
    "ablations.cli.sync:run_sync",
    study=True,
    json=True,
    checks=("declaration", "runs"),
)
