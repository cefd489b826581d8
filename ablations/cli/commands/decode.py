"""`ablate decode`: decode held-out prompts in every declared decoding setting."""

from ablations.cli.command import Command
from ablations.cli.options import workers_options

COMMAND = Command("decode", options=workers_options, study=True, settings=True, checks=("plan",))
