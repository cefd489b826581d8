"""`ablate report` of a search: its own best, which having been chosen flatters, and what fresh seeds say."""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ablations.cli import studies
from ablations.cli.recorded import drift_note
from ablations.cli.terminal import console, show_json
from analysis.formatting import coverage, pvalue, signed
from analysis.report.files import write_files
from analysis.report.html import write_report
from analysis.report.search import write_search_page
from analysis.report.terminal import terminal_table
from analysis.statistics.compare import paired_effect
from analysis.statistics.selection import confirm, expected_best
from analysis.study import Study
from analysis.verdicts.arms import UNCONFIRMED
from analysis.verdicts.judge import judge
from core.errors import UserError
from core.records.designs import SearchDesign
from core.records.provenance import mixture
from core.runtime.terminal import Terminal
from core.runtime.terminal_table import labelled
from core.runtime.units import counted, ranked, short, significant
from sweeps.search.importance import importances
from sweeps.search.plan import described, differing
from sweeps.search.results import Configuration, Results
from sweeps.search.spec import from_json
from sweeps.studies.study import CONFIRM

SHOWN = 5
UNEQUAL = 1.5  # halving lets groups differ somewhat: which configuration goes on is decided as they come
BIASED = "selected for these values, therefore biased"


def run_report(arguments: argparse.Namespace) -> int:
    """Write a search's report as one page; the confirmation has its own report beside its records."""
    results, folder = load_results(arguments)
    study = confirmed(results, folder)
    content = report(results, study)
    content["notes"] += drift_note(arguments)
    page, judgement = folder / "report.html", judge(study) if study is not None else None
    if study is not None and judgement is not None:
        write_report(study, judgement, folder.with_name(f"{folder.name}.{CONFIRM}") / "report.html")
        if arguments.files is not None:
            content["files"] = [str(file) for file in write_files(judgement, arguments.files)]
    elif arguments.files is not None:
        raise UserError(f"--files: {arguments.name} has no confirmed estimates yet, and those are what its tables show")
    write_search_page(content, judgement, page)
    content["report"] = str(page)
    if arguments.json:
        show_json(json.loads(json.dumps(content)))
        return 0
    print_report(content, study, console())
    return 0


def load_results(arguments: argparse.Namespace) -> tuple[Results, Path]:
    """Results of the search that the arguments name, and its folder. Raises UserError where nothing is."""
    name, search = studies.declared(arguments.name)
    recorded = studies.recorded_sizes(arguments.out, name, search)
    size = studies.meant_size(name, search, arguments.out, arguments.size)
    results = Results.load(recorded[size]) if size in recorded else None
    if results is None:
        raise UserError(
            f"nothing is recorded of {name} ({size}) in {arguments.out.absolute()}: {studies.command('run', arguments, size)}"
        )
    return results, recorded[size]


def confirmed(results: Results, folder: Path) -> Study | None:
    """The confirmation of what the search finds best now; None where there is none, or it was of another best."""
    path = folder.with_name(f"{folder.name}.{CONFIRM}")
    study = Study.load(path) if path.is_dir() else None
    wanted = {results.design.control, *(found.arm for found in results.finalists().values())}
    if study is None or {f"c-{arm.hash[:10]}" for arm in study.design.arms} != wanted:
        return None
    return study


def report(results: Results, study: Study | None) -> dict[str, Any]:
    """Everything that `ablate report` says of a search, JSON-ready."""
    design = results.design
    states = [found.status for found in results.configurations]
    groups = results.groups()
    confirmation = _confirmation(results, study) if study is not None else None
    unequal = {
        "unequal_budgets": _unequal_budgets(groups),
        "unequal_tokens": _unequal_tokens(confirmation["arms"]) if confirmation else None,
    }
    return {
        "search": design.ablation,
        "question": design.question,
        "metrics": design.metrics,
        "goals": design.goals,
        "configurations": {state: states.count(state) for state in ("complete", "paused", "failed")},
        "tokens": sum(found.tokens for found in results.configurations),
        "trials": [_trial(found) for found in results.configurations],
        "failures": [
            {"trial": f.trial, "group": f.group, "reason": f.reason}
            for f in results.configurations
            if f.status == "failed"
        ],
        "groups": [_group(results, name, found) for name, found in groups.items()],
        "confirmation": confirmation,
        "notes": _notes(results),
        "unreadable": list(results.unreadable),
        **unequal,
        "warnings": [said for said in unequal.values() if said],
    }


def _notes(results: Results) -> list[str]:
    """Notes beside the numbers: mixed versions of the code."""
    trained = [record for each in results.complete for record in each.records]
    mixed = mixture(trained)
    return [f"{mixed}."] if mixed else []


def _trial(found: Configuration) -> dict[str, Any]:
    """A configuration as the figures show it; its value is the last that was measured."""
    last = found.curve[max(found.curve)] if found.curve else None
    value = found.values[0] if found.values else last
    return {
        "trial": found.trial, "group": found.group, "status": found.status, "settings": dict(found.settings), "value": value,
    }  # fmt: skip


def _unequal_tokens(arms: Sequence[Mapping[str, Any]]) -> str | None:
    """A warning where confirmed arms were trained on other numbers of tokens than the control; None where they weren't."""
    spent = {row["arm"]: row["tokens"] for row in arms if row["tokens"] is not None}
    if len(set(spent.values())) < 2:
        return None
    told = ", ".join(f"{arm} {short(tokens)}" for arm, tokens in spent.items())
    return f"unequal training tokens a run: {told}: not a comparison at equal compute"


def _unequal_budgets(groups: Mapping[str, Sequence[Configuration]]) -> str | None:
    """Note on unequal tuning budgets of the compared groups: the better tuned one may look better for that alone."""
    spent = {name: sum(each.tokens for each in found) for name, found in groups.items()}
    counts = {name: len(found) for name, found in groups.items()}
    if len(groups) < 2 or (len(set(counts.values())) == 1 and max(spent.values()) <= UNEQUAL * min(spent.values())):
        return None
    told = ", ".join(
        f"{name} {counted(counts[name], 'configuration')} and {short(spent[name])} tokens" for name in groups
    )
    return f"unequal tuning budgets: {told}"


def _group(results: Results, name: str, found: Sequence[Configuration]) -> dict[str, Any]:
    design = results.design
    sign = 1 if design.goals[0] == "min" else -1
    complete = sorted((c for c in found if c.status == "complete"), key=lambda c: c.trial)
    best = [complete[place] for place in ranked([sign * c.values[0] for c in complete])[:SHOWN]]
    # Every configuration that didn't fail has a value here: no choice was made before.
    step = design.rungs[0]
    judged = [c for c in found if step in c.curve]
    values = [c.curve[step] for c in judged]
    search = from_json(design.declared)
    rows = importances(
        search,
        [c.settings for c in judged],
        [sign * value for value in values],
        rng=np.random.default_rng(0),
    )
    labels = {c.trial: described(d) for c, d in zip(found, differing([c.settings for c in found]), strict=True)}
    drawn = [c.curve[step] for c in judged if c.arm != design.control]  # the control was given, not drawn
    return {
        "group": name,
        "best": [_row(c, design, labels) | {"note": BIASED} for c in best],
        "pareto": [_row(c, design, labels) for c in results.pareto(name)] if len(design.metrics) > 1 else [],
        "judged_at_step": step,
        "expected_best": [] if search.guided else _expected(drawn, sign),
        "best_so_far": _so_far([c.curve[step] for c in sorted(judged, key=lambda c: c.trial)], sign),
        "guided_by": search.sampler if search.guided else None,
        "importance": [vars(row) for row in rows],
    }


def _counts(many: int) -> list[int]:
    return sorted({2**power for power in range(9) if 2**power < many} | ({many} - {0}))


def _expected(values: Sequence[float], sign: int) -> list[dict[str, float]]:
    """The expected best of n configurations, which only independent draws have."""
    return [{"n": n, "value": expected_best(values, n, higher_is_better=sign < 0)} for n in _counts(len(values))]


def _so_far(values: Sequence[float], sign: int) -> list[dict[str, float]]:
    """The best of the first n configurations, as it happened. values: in the order of trials."""
    best = sign * np.minimum.accumulate(sign * np.array(values, dtype=float))
    return [{"n": n, "value": float(best[n - 1])} for n in _counts(len(values))]


def _row(found: Configuration, design: SearchDesign, labels: Mapping[int, str]) -> dict[str, Any]:
    return {
        "is_control": found.arm == design.control,
        "trial": found.trial,
        "settings": dict(found.settings),
        "label": labels[found.trial] or described(found.settings),
        "values": list(found.values),
        "tokens": found.tokens,
    }


def _confirmation(results: Results, study: Study) -> dict[str, Any]:
    judgement = judge(study)
    metric, goal, alpha = study.design.metric, results.design.goals[0], study.design.alpha
    finalists = results.finalists()
    control_fresh = study.values("control", metric)
    control_then = next((c for c in results.configurations if c.arm == results.design.control), None)
    arms = []
    for arm in study.arms:
        found = control_then if arm == "control" else finalists[arm]
        row: dict[str, Any] = {"arm": arm, "label": study.labels[arm], "selected": None, "optimism": None}
        row["tokens"] = _tokens_a_run(study, arm)
        row |= {"estimate": None, "low": None, "high": None, "n": 0, "note": ""}
        fresh = study.values(arm, metric)
        selected = list(found.seed_values) if found is not None else []
        try:
            said = confirm(
                np.atleast_2d(selected or fresh), np.atleast_2d(fresh), higher_is_better=goal == "max", alpha=alpha
            )
            row |= {key: getattr(said, key) for key in ("estimate", "low", "high", "n")}
            row["selected"] = said.selected if selected else None
        except UserError as error:
            row["note"] = str(error)
        if reason := study.incomparable(metric, arm, "control"):
            row["note"] = reason
        elif arm != "control":
            row |= _effects(found, control_then, fresh, control_fresh, alpha)
        arms.append(row)
    return {
        "is_control": [name for name, found in finalists.items() if found.arm == results.design.control],
        "seeds": list(study.design.seeds),
        "missing": study.missing,
        "headline": judgement.headline,
        "winner": judgement.winner,
        "winner_reason": judgement.winner_reason.replace(UNCONFIRMED, "on fresh seeds"),
        "arms": arms,
        "judgement": judgement.to_dict(),
    }


def _tokens_a_run(study: Study, arm: str) -> int | None:
    """Training tokens of an arm's runs, those of stages before them included; None before one is recorded."""
    for record in study.records_of(arm):
        trainer = record.config["trainer"]
        own = int(trainer["steps"] * trainer["batch_size"] * record.config["data"]["sequence_length"])
        return own + round(record.before.get("tokens", 0))
    return None


def _effects(
    found: Configuration | None,
    control: Configuration | None,
    fresh: np.ndarray,
    control_fresh: np.ndarray,
    alpha: float,
) -> dict[str, Any]:
    """The arm's difference from the control on fresh seeds, and on the search's own where both were trained to the end."""
    row: dict[str, Any] = {"effect": None, "effect_low": None, "effect_high": None, "selected_effect": None}
    both = np.isfinite(fresh) & np.isfinite(control_fresh)
    try:
        effect = paired_effect(control_fresh[both], fresh[both], alpha=alpha)
        row |= {"effect": effect.estimate, "effect_low": effect.low, "effect_high": effect.high}
    except UserError as error:
        row["note"] = str(error)
    if found is not None and control is not None and found.seed_values and control.seed_values:
        row["selected_effect"] = float(np.mean(found.seed_values) - np.mean(control.seed_values))
        if row["effect"] is not None:
            row["optimism"] = row["selected_effect"] - row["effect"]
    return row


def print_report(content: dict[str, Any], study: Study | None, out: Terminal) -> None:
    """The report for people, and where its page is."""
    _print_content(content, study, out)
    if "report" in content:
        out.unwrapped(f"report: {content['report']}")


def _print_content(content: dict[str, Any], study: Study | None, out: Terminal) -> None:
    out.print(content["question"], style="bold")
    counts = content["configurations"]
    out.print(
        f"{counted(counts['complete'], 'configuration')} trained to the end, {counts['paused']} paused "
        f"before, {counts['failed']} "
        f"failed; {short(content['tokens'])} tokens"
    )
    for warning in content["warnings"]:
        out.print(warning, style="yellow")
    for note in content["notes"]:
        out.print(f"note: {note}", style="yellow")
    for failure in content["failures"][:SHOWN]:
        out.print(f"trial {failure['trial']} failed: {failure['reason']}", style="red")
    if any(group["best"] for group in content["groups"]):
        out.print()
        out.print(f"the search's own best ({BIASED})", style="bold")
    for group in content["groups"]:
        _print_group(group, content["metrics"], out)
    if study is None:
        out.print()
        out.print("not confirmed: `ablate run` trains the best and the control on fresh seeds", style="yellow")
        return
    found = content["confirmation"]
    out.print()
    out.print(f"confirmation on seeds {found['seeds'][0]} to {found['seeds'][-1]}, which chose nothing", style="bold")
    interval = coverage(study.design.alpha)
    of_that = interval.replace("interval", "of that")
    table = labelled("arm", "estimate", interval, "minus control", of_that, "search said (biased)")
    for row in found["arms"]:
        effect = row.get("effect")
        table.add(
            row["arm"],
            "" if row["estimate"] is None else significant(row["estimate"], 4),
            "" if row["low"] is None else f"{significant(row['low'], 4)} {significant(row['high'], 4)}",
            signed(effect, study.design.margin),
            "" if effect is None else f"{signed(row['effect_low'])} {signed(row['effect_high'])}",
            signed(row.get("selected_effect")),
        )
    out.print(table)
    for name in found["is_control"]:
        out.print(f"{name} is the control itself: nothing better was found, and its row is the control's")
    if len(found["arms"]) == 1:
        return  # the control alone: there is nothing to judge, nor to export
    out.print()
    out.print(terminal_table(judge(study), titled=False))
    said = "nothing yet" if found["winner"] is None else found["winner"]
    out.print(f"to export: {said}: {found['winner_reason']}")


def _print_group(group: dict[str, Any], metrics: Sequence[str], out: Terminal) -> None:
    if group["group"]:
        out.print(f"{group['group']}:")
    for row in group["best"]:
        out.print(f"  {_described(row, metrics)}")
    if group["pareto"]:
        out.print(f"  Pareto front: {counted(len(group['pareto']), 'configuration')}")
        for row in group["pareto"]:
            out.print(f"    {_described(row, metrics)}")
    step = group["judged_at_step"]
    for title, key in (("expected best of", "expected_best"), ("best of the first", "best_so_far")):
        if group[key] and (key == "expected_best" or group["guided_by"]):
            curve = ", ".join(f"{row['n']}: {significant(row['value'], 4)}" for row in group[key])
            out.print(f"  {title} n configurations at step {step}: {curve}")
    if group["guided_by"] and group["best_so_far"]:
        out.print(
            f"  no expected best: {group['guided_by']} proposes by what it has seen, so trials aren't random draws"
        )
    if group["importance"]:
        null = "95 % of shuffled values stay below the null"
        if group["guided_by"]:
            null = f"no p-values: {group['guided_by']} crowds its trials where values were good, so shuffled ones are no null"
        out.print(f"  importance at step {step} ({null}):")
        for row in group["importance"]:
            said = f"{row['parameter']}: {row['importance']:.3f}"
            if row["pvalue"] is not None:
                said += f", null {row['null']:.3f}, p = {pvalue(row['pvalue'], 0.05)}"
            out.print(f"    {said}")


def _described(row: Mapping[str, Any], metrics: Sequence[str]) -> str:
    values = ", ".join(
        f"{metric} {significant(value, 4)}" for metric, value in zip(metrics, row["values"], strict=True)
    )
    which = "the control: " if row["is_control"] else ""
    return f"trial {row['trial']}: {values}  ({which}{row['label']})"
