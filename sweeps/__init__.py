"""Declared ablations become claimed, trained and recorded runs."""
