"""`ablate verify`: compute all hashes again and list the problems found."""

from ablations.cli.command import Command
from ablations.cli.options import storage_option

COMMAND = Command("verify", options=storage_option, study=True, json=True, checks=("any size",), changes="shown")
