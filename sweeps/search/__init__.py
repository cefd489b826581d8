"""Searches: configurations proposed by Optuna, trained in growing budgets, and confirmed on fresh seeds."""
