"""`ablate doctor`: check this machine's hardware and software."""

from ablations.cli.command import Command

COMMAND = Command("doctor", json=True)
