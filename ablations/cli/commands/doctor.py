"""`ablate doctor`: check this machine's hardware and software."""

from ablations.cli.command import Command

COMMAND = Command("doctor", "check this machine's hardware and software", "ablations.cli.doctor:run_doctor", json=True)
