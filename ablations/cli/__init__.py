"""The command line `ablate`."""
