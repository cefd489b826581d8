"""Commands for searches: a space of settings, whose best configurations are confirmed on fresh seeds."""
