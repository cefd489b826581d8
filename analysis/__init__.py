"""Records in; effects, intervals and verdicts out. Never loads torch."""
