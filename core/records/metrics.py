"""Metrics of a run: what each means, its unit, which direction is better, and where it shows.

Every metric shows where a study names it as `metric` or `secondary`: in tables, figures, W&B and on the live page. `metric`
registers one together with the function that measures it; those of core.training.metrics are found by themselves.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from core.config.run import RunConfig
from core.registry import Registry

if TYPE_CHECKING:
    from torch import Tensor  # seconds to import, which analysis must not spend


@dataclass(frozen=True)
class Validation:
    """A validation that is over. outputs: of each batch of all ranks (core.training.module's validation_step). column: one of
    their columns over all batches, fp64; None where the run has no such column."""

    config: RunConfig
    outputs: "Sequence[Mapping[str, Tensor]]"
    column: "Callable[[str], Tensor | None]"


Measure = Callable[[Validation], float | None]  # None: the run has no such number


@dataclass(frozen=True)
class Metric:
    """One number of a run.

    goal: the better direction. measured: which runs have it at every validation, all or those of text, of a source of known
    entropy, or with experts. likelihood: it is one, so that arms of unlike kinds of likelihood aren't compared by it. panel:
    a panel in every study's W&B workspace; chart: a curve on every report and live page; health: a row of a ladder's
    table of routing health. implementation: measures it at every validation; None: the training loop does.
    """

    name: str
    label: str
    unit: str
    goal: Literal["min", "max"]
    meaning: str
    measured: Literal["always", "text", "source", "experts", ""] = ""
    likelihood: bool = False
    panel: bool = False
    chart: bool = False
    health: bool = False
    implementation: Measure | None = None


RATIO_BINS = 10


def ratio_metric(index: int) -> str:
    """Name of the cross-entropy of mask ratios in ((index - 1) / 10, index / 10]."""
    return f"val/cross_entropy@{index / RATIO_BINS:g}"


def part_metric(name: str) -> str:
    """Name of the NELBO on the held-out sequences of one part of a mixture, such as "val/nelbo@stdlib"."""
    return f"val/nelbo@{name}"


BUILT_IN = (
    Metric("val/nelbo", "NELBO", "nats/token", "min",
           "bound on the negative log-likelihood of held-out text, auxiliary losses excluded", likelihood=True,
           measured="always"),
    *(
        Metric(ratio_metric(index), f"cross-entropy at mask ratio {(index - 1) / RATIO_BINS:g}-{index / RATIO_BINS:g}",
               "nats/token", "min", "of masked tokens, in held-out sequences of that mask ratio")
        for index in range(1, RATIO_BINS + 1)
    ),
    Metric("val/bits_per_byte", "bits per byte", "bits/byte", "min", "the same bound per byte of text", likelihood=True,
           measured="text"),
    Metric("val/excess_nelbo", "excess NELBO", "nats/token", "min",
           "NELBO minus that of the exact posterior of a synthetic source on the same masks", likelihood=True,
           measured="source"),
    Metric("load/max_vio", "MaxVio", "", "min",
           "(max load - mean load) / mean load over the validation set, mean over layers", measured="experts",
           panel=True, chart=True, health=True),
    Metric("load/max_vio_batch", "MaxVio of a batch", "", "min",
           "the same of single validation batches, mean over them and over layers", measured="experts"),
    Metric("router/top1_probability", "top-1 probability", "", "max",
           "the router's highest probability, mean over validation tokens and layers", measured="experts"),
    Metric("load/entropy", "utilisation entropy", "", "max",
           "entropy of expert load over log E (1 = balanced), mean over layers", measured="experts"),
    Metric("load/dead_experts", "dead experts", "share", "min",
           "share of experts that no validation token reaches, mean over layers", measured="experts"),
    Metric("val/z_loss", "router z-loss", "", "min", "mean squared log-sum-exp of router logits, mean over layers",
           measured="experts", panel=True, health=True),
    Metric("val/load_balancing", "load-balancing loss", "", "min",
           "E sum f P on validation, mean over layers (1 = balanced)", measured="experts", panel=True),
    Metric("train/tokens_per_second", "throughput", "tokens/s", "max", "training tokens per second of wall time"),
)  # fmt: skip

METRICS: Registry[Metric] = Registry("metric", BUILT_IN, folder="core.training.metrics")


def metric(name: str, **traits: Any) -> Callable[[Measure], Measure]:
    """Register a function as a metric that is measured at every validation. traits: fields of Metric."""

    def register(measure: Measure) -> Measure:
        METRICS.add(Metric(name, **traits, implementation=measure))
        return measure

    return register


def metrics_in(place: Literal["panel", "chart", "health"]) -> tuple[str, ...]:
    """The metrics that show in a place whatever a study judges."""
    return tuple(each.name for each in METRICS.entries() if getattr(each, place))


class RowLogger(Protocol):
    """Takes rows of metrics: of training every `trainer.log_every` steps, of every validation. Lightning's loggers do too."""

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """A row by the names of METRICS, after `step` steps."""
