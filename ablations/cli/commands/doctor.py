"""`ablate doctor`: what this machine has and what that means."""

from ablations.cli.command import Command

COMMAND = Command("doctor", "what this machine has and what that means", "ablations.cli.doctor:run_doctor", json=True)
