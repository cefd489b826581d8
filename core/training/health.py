"""Signs that a run is going wrong, told while it trains (pure functions of what is logged)."""

import itertools
import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

CROWD = 0.4  # share of tokens that reach one expert
FEW_SHARE = 0.8  # share of assignments that go to as few experts as a token chooses
SPIKE = {"train/nelbo": 1.5, "train/z_loss": 5.0}  # times the median of the rows before
RISE = 2.0  # times what it was, without ever falling
WINDOW = 10  # logged rows
IMBALANCE_FLOOR = 0.98  # the load-balancing loss is 1 at balance, and below it only where f and P disagree


class Alarm(NamedTuple):
    """An alarm of a run: its kind, step and description."""

    step: int
    kind: str
    detail: str


def of_curve(step: int, curve: dict[str, list[float]]) -> list[Alarm]:
    """Alarms of the newest logged row, by the rows before it: loss and z-loss spikes, a z-loss that only rises."""
    alarms = []
    for name, limit in SPIKE.items():
        values = curve.get(name, [])
        before = values[-1 - WINDOW : -1]
        if len(before) == WINDOW and statistics.median(before) > 0 and values[-1] > limit * statistics.median(before):
            times = values[-1] / statistics.median(before)
            alarms.append(Alarm(step, f"{name[6:]} spike", f"{times:.1f} times the median of the {WINDOW} rows before"))
    z_loss = curve.get("train/z_loss", [])[-1 - WINDOW :]
    rises = all(later > earlier for earlier, later in itertools.pairwise(z_loss))
    if len(z_loss) == WINDOW + 1 and rises and z_loss[-1] > RISE * z_loss[0]:
        alarms.append(Alarm(step, "z_loss rise", f"from {z_loss[0]:.3g} to {z_loss[-1]:.3g} over {WINDOW} rows"))
    return alarms


def of_load(step: int, counts_SE: "Tensor", tokens: int, load_balancing: float) -> list[Alarm]:
    """Alarms of a validation's load: counts_SE (sparse layers, E) assignments of that many tokens.

    Collapse is an expert that more than 40 % of the tokens reach, and more than twice as many as at balance; or 80 % of the
    assignments on as few experts as a token has, where there are at least three times as many.
    """
    alarms = []
    for layer, counts_E in enumerate(counts_SE.tolist()):
        total, experts = sum(counts_E), len(counts_E)
        share, each = max(counts_E) / tokens, total / tokens
        if share > max(CROWD, 2 * each / experts):
            alarms.append(Alarm(step, "collapse", f"layer {layer}: one expert has {share:.0%} of the tokens"))
        few = max(1, round(each))
        crowd = sum(sorted(counts_E)[-few:]) / total
        if crowd > FEW_SHARE and experts >= 3 * few:
            alarms.append(Alarm(step, "collapse", f"layer {layer}: {few} of {experts} experts have {crowd:.0%}"))
        dead = counts_E.count(0)
        if dead:
            alarms.append(Alarm(step, "dead experts", f"layer {layer}: {dead} of {experts} got no validation token"))
    if load_balancing < IMBALANCE_FLOOR:
        why = "below its balanced value of 1: the router's probabilities contradict its choice"
        alarms.append(Alarm(step, "load balancing", f"{load_balancing:.3f}, {why}"))
    return alarms


def summary(alarms: Sequence[Alarm]) -> list[Alarm]:
    """The first of each kind."""
    first: dict[str, Alarm] = {}
    for alarm in alarms:
        first.setdefault(alarm.kind, alarm)
    return list(first.values())
