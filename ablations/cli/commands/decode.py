"""`ablate decode`: every trained model answers held-out prompts, in each of its ways of decoding."""

from ablations.cli.command import Command
from ablations.cli.options import workers_options

COMMAND = Command(
    "decode",
    "decode the trained models in the declared ways",
    "ablations.cli.decode:run_decode",
    workers_options,
    study=True,
    settings=True,
    checks=("declaration", "plan"),
)
