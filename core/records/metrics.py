"""The metrics that a run reports: what each means, its unit, and which direction is better."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Metric:
    """One number of a run."""

    label: str
    unit: str
    goal: Literal["min", "max"]
    meaning: str


RATIO_BINS = 10


def ratio_metric(index: int) -> str:
    """Name of the cross-entropy of mask ratios in ((index - 1) / 10, index / 10]."""
    return f"val/cross_entropy@{index / RATIO_BINS:g}"


def part_metric(name: str) -> str:
    """Name of the NELBO on the held-out sequences of one part of a mixture, such as "val/nelbo@stdlib"."""
    return f"val/nelbo@{name}"


METRICS: dict[str, Metric] = {
    "val/nelbo": Metric(
        "NELBO", "nats/token", "min", "bound on the negative log-likelihood of held-out text, auxiliary losses excluded"
    ),
    **{
        ratio_metric(index): Metric(
            f"cross-entropy at mask ratio {(index - 1) / RATIO_BINS:g}-{index / RATIO_BINS:g}",
            "nats/token",
            "min",
            "of masked tokens, in held-out sequences of that mask ratio",
        )
        for index in range(1, RATIO_BINS + 1)
    },
    "val/bits_per_byte": Metric("bits per byte", "bits/byte", "min", "the same bound per byte of text"),
    "val/excess_nelbo": Metric(
        "excess NELBO",
        "nats/token",
        "min",
        "NELBO minus that of the exact posterior of a synthetic source on the same masks",
    ),
    "val/preference_accuracy": Metric(
        "preference accuracy",
        "share",
        "max",
        "held-out pairs whose chosen response's bound gained more on the reference than the rejected one's (a tie is half)",
    ),
    "val/preference_margin": Metric(
        "preference margin", "", "max", "beta times the difference of implicit rewards, mean over held-out pairs"
    ),
    "load/max_vio": Metric(
        "MaxVio", "", "min", "(max load - mean load) / mean load over the validation set, mean over layers"
    ),
    "load/max_vio_batch": Metric(
        "MaxVio of a batch", "", "min", "the same of single validation batches, mean over them and over layers"
    ),
    "router/top1_probability": Metric(
        "top-1 probability", "", "max", "the router's highest probability, mean over validation tokens and layers"
    ),
    "load/entropy": Metric(
        "utilisation entropy", "", "max", "entropy of expert load over log E (1 = balanced), mean over layers"
    ),
    "load/dead_experts": Metric(
        "dead experts", "share", "min", "share of experts that no validation token reaches, mean over layers"
    ),
    "val/load_balancing": Metric(
        "load-balancing loss", "", "min", "E sum f P on validation, mean over layers (1 = balanced)"
    ),
    "val/z_loss": Metric("router z-loss", "", "min", "mean squared log-sum-exp of router logits, mean over layers"),
    "train/tokens_per_second": Metric("throughput", "tokens/s", "max", "training tokens per second of wall time"),
}
