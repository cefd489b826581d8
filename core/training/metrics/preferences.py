"""Metrics of preferences, on held-out pairs."""

from core.records.metrics import Validation, metric


@metric(
    "val/preference_accuracy",
    label="preference accuracy",
    unit="share",
    goal="max",
    meaning=(
        "held-out pairs whose chosen response's bound gained more on the reference than the rejected one's (a tie is half)"
    ),
)
def preference_accuracy(validation: Validation) -> float | None:
    """The share of pairs whose margin is positive; a margin of 0 counts half."""
    margin_N = validation.column("margin_P")
    return None if margin_N is None else float(((margin_N > 0) + 0.5 * (margin_N == 0)).mean())


@metric(
    "val/preference_margin",
    label="preference margin",
    unit="",
    goal="max",
    meaning="beta times the difference of implicit rewards, mean over held-out pairs",
)
def preference_margin(validation: Validation) -> float | None:
    """The mean margin over pairs."""
    margin_N = validation.column("margin_P")
    return None if margin_N is None else float(margin_N.mean())
