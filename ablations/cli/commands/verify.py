"""`ablate verify`: compute all hashes again and list the problems found."""

from ablations.cli.command import Command
from ablations.cli.options import storage_option

COMMAND = Command(
    "verify",
    "compute all hashes again and list the problems found",
    "ablations.cli.verify:run_verify",
    storage_option,
    study=True,
    json=True,
    checks=("declaration", "any size"),
    changes="shown",
)
