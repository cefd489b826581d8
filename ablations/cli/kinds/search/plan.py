"""`ablate plan` of a search: its space, what it may cost, and whether its confirmation can reach significance."""

import argparse
from dataclasses import replace
from typing import Any

import optuna

from ablations.cli import studies
from ablations.cli.launching import resolve_workers
from ablations.cli.plan import check_calibration, show_plan
from analysis.statistics.power import reaches_significance
from core.data.corpora import describe as describe_data
from core.errors import UserError
from core.runtime.terminal import Terminal, line
from core.runtime.terminal_table import labelled
from core.runtime.units import counted, duration, short
from sweeps.launch.machine import default_workers, share_of_cores
from sweeps.search.plan import SearchPlan
from sweeps.search.rungs import expected_steps
from sweeps.search.space import draw

OF_DESIGN = (
    "ablation", "size", "question", "metrics", "space", "compare", "seeds", "rungs", "sampler", "pruner", "trials",
    "tokens", "control_settings",
)  # fmt: skip
DRAWS = 200  # random points that say how much of the space can be trained


def run_plan(arguments: argparse.Namespace) -> int:
    """Print the space, the budget, and what they cost."""
    return show_plan(describe(studies.make_plan(arguments), arguments), arguments, print_plan)


def refusal(plan: SearchPlan) -> str | None:
    """Reason why the confirmation can't reach significance, with the seeds that would suffice; None if it can."""
    comparisons = len(plan.groups) * len(plan.search.metrics)
    answer = reaches_significance(
        plan.search.confirm, alpha=plan.search.alpha, power=plan.search.power, comparisons=comparisons
    )
    if answer.ok:
        return None
    return (
        f"confirm: {plan.search.confirm} fresh seeds cannot reach significance for {counted(comparisons, 'comparison')} at "
        f"alpha={plan.search.alpha:g}: use at least confirm={answer.seeds_needed}"
    )


def feasible_share(plan: SearchPlan) -> tuple[float, str]:
    """The share of random points that can be trained, and what most often stands in the way of the others."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    resolver, reasons = plan.resolver, list[str]()
    for _ in range(DRAWS):
        trial = study.ask()
        resolved = resolver.resolve(draw(trial, plan.search, {}))
        reasons += [resolved.reason] if resolved.config is None else []
        study.tell(trial, state=optuna.trial.TrialState.FAIL)
    commonest = max(set(reasons), key=reasons.count) if reasons else ""
    return 1 - len(reasons) / DRAWS, commonest


def tokens_bound(plan: SearchPlan) -> tuple[float, float]:
    """Training tokens of one group: when every configuration is trained to the end, and about what halving leaves."""
    design = plan.design
    one = design.tokens_per_run * len(plan.search.seeds)
    if plan.search.budget.tokens:
        return plan.search.budget.tokens, plan.search.budget.tokens
    trials = plan.search.budget.trials or 0
    steps = expected_steps(trials, plan.rungs, hyperband=plan.search.chosen_pruner == "hyperband")
    return trials * one, steps / plan.rungs[-1] * one


def describe(plan: SearchPlan, arguments: argparse.Namespace) -> dict[str, Any]:
    """Everything that `ablate plan` shows of a search."""
    share, reason = feasible_share(plan)
    if share == 0:
        raise UserError(f"space: none of {DRAWS} random points can be trained; most often: {reason}")
    bound, expected = tokens_bound(plan)
    groups = len(plan.groups)
    arms = groups * len(plan.search.metrics) + 1
    confirm_tokens = arms * plan.search.confirm * plan.design.tokens_per_run
    content = {key: getattr(plan.design, key) for key in OF_DESIGN} | {
        "groups": [group.label for group in plan.groups],
        "feasible_share": share,
        "infeasible": reason,
        "tokens_per_run": plan.design.tokens_per_run,
        "data": describe_data([plan.resolver.control.data]),
        "most_tokens": groups * bound,
        "expected_tokens": groups * expected,
        "confirm": {"seeds": list(plan.fresh_seeds), "arms": arms, "tokens": confirm_tokens},
        "refused": refusal(plan),
    }
    if not arguments.no_calibration and not content["refused"]:
        check_calibration([plan.resolver.control])
        from sweeps.runs.cost import calibrate  # torch and what trains with it

        sweep = replace(plan, runs=plan.control_runs[:1])
        workers = resolve_workers(arguments.workers, sweep) or default_workers(plan.devices)
        seconds = next(iter(calibrate(sweep, threads=max(1, len(share_of_cores(0, 1)) // workers)).values()))
        tokens = content["expected_tokens"] + confirm_tokens
        content |= {"workers": workers, "seconds_per_run": seconds}
        content["estimated_seconds"] = seconds * tokens / plan.design.tokens_per_run / workers
    return content


def print_plan(content: dict[str, Any], out: Terminal) -> None:
    """The plan for people."""
    out.print(line(content["ablation"], "bold") + line(f" {content['size']}, a search", "dim"))
    out.print(content["question"])
    table = labelled("key", "range", "control", folded=("range",), left=("control",))
    for key, said in content["space"].items():
        table.add(key, line(said), line(content["control_settings"].get(key, "")))
    out.print(table)
    per = f" for each {content['compare']} ({', '.join(content['groups'])})" if content["compare"] else ""
    budget = counted(content["trials"], "configuration") if content["trials"] else f"{short(content['tokens'])} tokens"
    out.print(f"budget: {budget}{per}, seeds {', '.join(map(str, content['seeds']))} in each")
    rungs = f", compared at steps {', '.join(map(str, content['rungs']))}" if len(content["rungs"]) > 1 else ""
    out.print(
        f"sampler {content['sampler']}, pruner {content['pruner']}{rungs}; objectives {', '.join(content['metrics'])}"
    )
    out.print(
        f"tokens: about {short(content['expected_tokens'])}, at most {short(content['most_tokens'])}; then "
        f"{short(content['confirm']['tokens'])} to confirm {counted(content['confirm']['arms'], 'arm')} on "
        f"{len(content['confirm']['seeds'])} fresh seeds"
    )
    rest = f"; most often in the way: {content['infeasible']}" if content["infeasible"] else ""
    out.print(f"{content['feasible_share']:.0%} of random points can be trained{rest}")
    for each in content["data"]:
        out.unwrapped(each)
    if content.get("estimated_seconds") is not None:
        out.print(
            f"time: about {duration(content['estimated_seconds'])} with {counted(content['workers'], 'worker')} "
            f"on this machine"
        )
