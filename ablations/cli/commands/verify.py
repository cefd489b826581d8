"""`ablate verify`: re-hash the records and list what can't be trusted."""

from ablations.cli.command import Command
from ablations.cli.options import storage_option

COMMAND = Command(
    "verify",
    "what of the records can't be trusted",
    "ablations.cli.verify:run_verify",
    storage_option,
    study=True,
    json=True,
    checks=("declaration", "any size"),
    changes="shown",
)
