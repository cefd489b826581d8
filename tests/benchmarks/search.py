"""Tokens until a search has trained a configuration as good as random search's best, replayed on recorded curves.

    python -m tests.benchmarks.search [--repeats 60]

Contestants search the same space: a search of ours with the defaults of `Search`; Optuna's defaults (TPE and the median
pruner, told every validation); random search. A point is looked up at the nearest recorded configuration (tests/benchmarks/
data/curves.json: real runs, see record_curves.py), its value the mean over the recorded seeds. A repeat's target is the best
that random search trains to the end with its whole budget; what counts are the tokens until something as good, or within
0.5 % of it, is trained to the end. Ours begins with its control, here the poorest corner of the space, so that it knows
nothing more.
"""

import argparse
import json
import math
import statistics
from collections.abc import Callable
from typing import Any

import numpy as np
import optuna

from sweeps.search.plan import SearchPlan, plan
from sweeps.search.space import draw
from sweeps.search.spec import Budget, Choice, Int, Log, Search
from sweeps.search.tuner import Tuner
from sweeps.studies.study import Level
from tests.benchmarks.record_curves import DATA, LEARNING_RATE, LOAD_BALANCING, SETTINGS, TOP_K, Z_LOSS

BUDGET = 32  # whole trainings
TOLERANCES = {"within 0.5 % of": 1.005, "as good as": 1.0}
REPEATS = 60
CONTROL: dict[str, Level] = {LEARNING_RATE: 5e-4, LOAD_BALANCING: 1.0, Z_LOSS: 0.0, TOP_K: 1}
SPACE = {
    LEARNING_RATE: Log(5e-4, 5e-2),
    LOAD_BALANCING: Log(5e-3, 2.0, zero=True),
    Z_LOSS: Choice((0.0, 0.01)),
    TOP_K: Int(1, 2),
}
Trace = list[tuple[float, float]]  # after each training to the end: whole trainings spent, and the value


class Curves:
    """The recorded grid, as a function of settings and training tokens."""

    def __init__(self) -> None:
        content = json.loads(DATA.read_text(encoding="utf-8"))
        self.provenance = {k: content[k] for k in ("recorded", "git_commit", "data_fingerprint", "parameters")}
        self.grid, self.tokens = content["grid"], content["tokens"]
        shape = [*map(len, self.grid.values()), len(content["seeds"]), len(self.tokens)]
        absent = [math.inf] * len(self.tokens)
        nelbo = np.array(
            [[math.inf if v is None else v for v in row or absent] for row in content["nelbo"]], dtype=float
        )
        self.mean = nelbo.reshape(shape).mean(axis=-2)

    def __call__(self, settings: dict[str, Any]) -> np.ndarray:
        """NELBO by validation at the nearest recorded configuration; distances are of logarithms, and only 0 is near 0."""
        return self.mean[tuple(self._nearest(self.grid[key], settings[key]) for key in self.grid)]

    @staticmethod
    def _nearest(levels: list[float], value: float) -> int:
        if value == 0:
            return levels.index(0)
        return min((abs(math.log(level / value)), place) for place, level in enumerate(levels) if level)[1]


def declared(seed: int = 0, **changes: Any) -> Search:
    """The benchmark's search; everything that it leaves out is a default."""
    question = "How many tokens does a search take?"
    fields: dict[str, Any] = {
        "base": "tiny",
        "settings": SETTINGS,
        "budget": Budget(tokens=BUDGET * run_tokens()),
        "seed": seed,
    }
    return Search(question, SPACE, CONTROL, **(fields | changes))


def run_tokens() -> float:
    """Training tokens of one whole run."""
    return float(SETTINGS["trainer.steps"] * SETTINGS["trainer.batch_size"] * SETTINGS["data.sequence_length"])  # type: ignore[operator]


def ours(curves: Curves, planned: SearchPlan, enough: Callable[[float], bool] = lambda value: False) -> Trace:
    """A search as workers would run it, with the recorded curves in place of training."""
    tuner = Tuner(planned, planned.groups[0], optuna.storages.InMemoryStorage())
    steps = np.array(curves.tokens) / planned.design.tokens_per_step
    spent, trace, reached = 0.0, Trace(), dict[int, float]()
    while (job := tuner.next()) is not None:
        until = job.until or planned.rungs[-1]
        value = float(curves(dict(job.settings))[int(np.searchsorted(steps, until))])
        cost = (until - reached.get(job.number, 0)) * planned.design.tokens_per_step
        reached[job.number] = until
        spent += cost / run_tokens()
        if not math.isfinite(value):
            tuner.fail(job, cost, "diverged")
        elif job.until:
            tuner.report_rung(job, [value], cost)
        else:
            tuner.complete(job, [value], cost)
            trace.append((spent, value))
            if enough(value):
                break
    return trace


def optuna_with(
    curves: Curves, sampler: optuna.samplers.BaseSampler, pruner: optuna.pruners.BasePruner | None, budget: float
) -> Trace:
    """What `study.optimize` does: a trial is told of every validation and stops where the pruner says so."""
    search, trace, spent = declared(), Trace(), 0.0
    study = optuna.create_study(sampler=sampler, pruner=pruner)

    def objective(trial: optuna.Trial) -> float:
        nonlocal spent
        curve = curves(draw(trial, search, {}))
        for step, value in enumerate(curve):
            trial.report(float(value), step)
            spent += 1 / len(curve)
            if step < len(curve) - 1 and trial.should_prune():
                raise optuna.TrialPruned
        trace.append((spent, float(curve[-1])))
        return float(curve[-1])

    while spent < budget:
        study.optimize(objective, n_trials=1)
    return trace


def contest(curves: Curves, seed: int) -> dict[str, dict[str, float]]:
    """By target, the whole trainings that each contestant spends until it is met; inf = not within the budget."""
    random = optuna_with(curves, optuna.samplers.RandomSampler(seed=seed), optuna.pruners.NopPruner(), BUDGET)
    best = min(value for _, value in random)
    found = {
        "random search": random,
        "Optuna's defaults": optuna_with(curves, optuna.samplers.TPESampler(seed=seed), None, BUDGET),
        "ours": ours(curves, plan("bench", declared(seed)), lambda value: value <= best),
    }
    return {
        target: {n: next((s for s, v in trace if v <= best * times), math.inf) for n, trace in found.items()}
        for target, times in TOLERANCES.items()
    }


def measure(repeats: int) -> dict[str, Any]:
    """Every repeat of the contest, and what it was replayed on."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    curves = Curves()
    rounds = [contest(curves, seed) for seed in range(repeats)]
    return {"rounds": rounds, "tokens_per_run": run_tokens() * 2, **curves.provenance}


def table(found: dict[str, Any]) -> list[str]:
    """The result as Markdown: medians and quartiles, and how often ours was the cheaper one of a repeat."""
    per_run = found["tokens_per_run"] / 1e6
    lines = [
        f"tokens until a search is as good as random search's best of {BUDGET}; {len(found['rounds'])} repeats, median "
        "[quartiles]",
        "",
        "| random search's best | search | tokens, millions | whole trainings | ours cheaper, dearer | not reached |",
        "|---|---|---|---|---|---|",
    ]
    for target in TOLERANCES:
        rounds = [each[target] for each in found["rounds"]]
        for name in rounds[0]:
            spent = sorted(each[name] for each in rounds)
            low, high = (spent[round(q * (len(spent) - 1))] for q in (0.25, 0.75))
            middle = statistics.median(spent)
            won, lost = (sum(sign * each["ours"] < sign * each[name] for each in rounds) for sign in (1, -1))
            lines.append(
                f"| {target} | {name} | {middle * per_run:.2f} [{low * per_run:.2f}, {high * per_run:.2f}] | {middle:.1f} "
                f"[{low:.1f}, {high:.1f}] | {'' if name == 'ours' else f'{won}, {lost}'} | {sum(map(math.isinf, spent))} |"
            )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.search", description=__doc__)
    parser.add_argument("--repeats", type=int, default=REPEATS)
    found = measure(parser.parse_args().repeats)
    print("\n".join(table(found)))


if __name__ == "__main__":
    main()
