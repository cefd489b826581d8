"""`ablate report` of a search: its own best, which having been chosen flatters, and what fresh seeds say."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Group

from ablations.cli import studies
from ablations.cli.recorded import drift_note
from ablations.cli.terminal import console, show_json
from analysis.report.files import write_files
from analysis.report.html import write_report, write_search
from analysis.report.terminal import table_lines, terminal_table
from analysis.statistics.selection import confirm, expected_best
from analysis.study import Study
from analysis.table import tables_on
from analysis.verdicts.answer import Judgement
from analysis.verdicts.arms import UNCONFIRMED
from analysis.verdicts.comparisons import Row
from analysis.verdicts.judge import judge
from analysis.verdicts.search import BIASED, SearchAnswer
from core.errors import UserError
from core.records.provenance import mixture
from core.runtime.terminal import Terminal
from core.runtime.units import counted, ranked, short
from sweeps.search.importance import importances
from sweeps.search.plan import described, differing
from sweeps.search.results import Configuration, Results
from sweeps.search.spec import arm_name, from_json
from sweeps.studies.study import CONFIRM

SHOWN = 5
UNEQUAL = 1.5  # halving lets groups differ somewhat: which configuration goes on is decided as they come


def run_report(arguments: argparse.Namespace) -> int:
    """Write a search's report as one page; the confirmation has its own report beside its records."""
    results, folder = load_results(arguments)
    answer = answer_of(results, confirmed(results, folder), drift_note(arguments))
    judgement, page = answer.judgement, folder / "report.html"
    written: dict[str, Any] = {"report": str(page)}
    if judgement is not None:
        write_report(judgement.study, judgement, folder.with_name(f"{folder.name}.{CONFIRM}") / "report.html")
    if arguments.files is not None:
        if judgement is None:
            raise UserError(
                f"--files: {arguments.name} has no confirmed estimates yet, and those are what its tables show"
            )
        written["files"] = [str(file) for file in write_files(judgement, arguments.files)]
    write_search(answer, page)
    if arguments.json:
        show_json(answer.to_dict() | written)
        return 0
    print_report(answer, console())
    console().unwrapped(f"report: {page}")
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
    if study is None or {arm_name(arm.hash) for arm in study.design.arms} != wanted:
        return None
    return study


def answer_of(results: Results, study: Study | None, notes: Sequence[str] = ()) -> SearchAnswer:
    """The answer of a search. study: its confirmation; notes: what else is to be known beside the numbers."""
    judgement = judge(study) if study is not None else None
    design, groups, found = results.design, results.groups(), results.configurations
    states = [each.status for each in found]
    failed = [each for each in found if each.status == "failed"]
    confirmation = _confirmation(results, judgement) if judgement is not None else None
    unequal = {
        "unequal_budgets": _unequal_budgets(groups),
        "unequal_tokens": _unequal_tokens(confirmation["arms"]) if confirmation else None,
    }
    mixed = mixture([record for each in results.complete for record in each.records])
    content = {
        "search": design.ablation,
        "question": design.question,
        "metrics": design.metrics,
        "goals": design.goals,
        "configurations": {state: states.count(state) for state in ("complete", "paused", "failed")},
        "tokens": sum(each.tokens for each in found),
        "trials": [_trial(each) for each in found],
        "failures": [{"trial": each.trial, "group": each.group, "reason": each.reason} for each in failed],
        "groups": [_group(results, name, own) for name, own in groups.items()],
        "confirmation": confirmation,
        "notes": [*([f"{mixed}."] if mixed else []), *notes],
        "unreadable": list(results.unreadable),
        **unequal,
        "warnings": [words for words in unequal.values() if words],
    }
    return SearchAnswer(content, judgement)


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
    """The best of a group, and how its configurations compare at the first rung."""
    design, search = results.design, from_json(results.design.declared)
    sign = 1 if design.goals[0] == "min" else -1
    complete = sorted((each for each in found if each.status == "complete"), key=lambda each: each.trial)
    best = [complete[place] for place in ranked([sign * each.values[0] for each in complete])[:SHOWN]]
    # Every configuration that didn't fail has a value here: no choice was made before.
    step = design.rungs[0]
    judged = [each for each in found if step in each.curve]
    points, losses = [each.settings for each in judged], [sign * each.curve[step] for each in judged]
    mattered = importances(search, points, losses, rng=np.random.default_rng(0))
    differences = differing([each.settings for each in found])
    labels = {each.trial: described(own) for each, own in zip(found, differences, strict=True)}

    def row(each: Configuration) -> dict[str, Any]:
        return {
            "is_control": each.arm == design.control,
            "trial": each.trial,
            "settings": dict(each.settings),
            "label": labels[each.trial] or described(each.settings),
            "values": list(each.values),
            "tokens": each.tokens,
        }

    # Independent draws alone have an expected best; the control was given, not drawn.
    drawn = [each.curve[step] for each in judged if each.arm != design.control and not search.guided]
    in_time = [each.curve[step] for each in sorted(judged, key=lambda each: each.trial)]
    so_far = sign * np.minimum.accumulate(sign * np.array(in_time, dtype=float))
    return {
        "group": name,
        "best": [row(each) | {"note": BIASED} for each in best],
        "pareto": [row(each) for each in results.pareto(name)] if len(design.metrics) > 1 else [],
        "judged_at_step": step,
        "expected_best": [
            {"n": n, "value": expected_best(drawn, n, higher_is_better=sign < 0)} for n in _counts(len(drawn))
        ],
        "best_so_far": [{"n": n, "value": float(so_far[n - 1])} for n in _counts(len(in_time))],
        "guided_by": search.sampler if search.guided else None,
        "importance": [vars(each) for each in mattered],
    }


def _counts(many: int) -> list[int]:
    """Numbers of configurations at which curves are shown: powers of 2, and all."""
    return sorted({2**power for power in range(9) if 2**power < many} | ({many} - {0}))


def _confirmation(results: Results, judgement: Judgement) -> dict[str, Any]:
    """Confirmation of the control and the finalists on fresh seeds, beside the search's own values."""
    study, finalists = judgement.study, results.finalists()
    control = next((each for each in results.configurations if each.arm == results.design.control), None)
    found = {"control": control} | finalists
    return {
        "is_control": [name for name, each in finalists.items() if each.arm == results.design.control],
        "seeds": list(study.design.seeds),
        "missing": study.missing,
        "headline": judgement.headline,
        "winner": judgement.winner,
        "winner_reason": judgement.winner_reason.replace(UNCONFIRMED, "on fresh seeds"),
        "arms": [_arm(study, row, found[row.arm], control) for row in judgement.comparisons[0].rows],
        "judgement": judgement.to_dict(),
    }


def _arm(study: Study, row: Row, found: Configuration | None, control: Configuration | None) -> dict[str, Any]:
    """An arm on fresh seeds, and what the search said of it where it was trained to the end."""
    arm: dict[str, Any] = {"arm": row.arm, "label": row.label, "tokens": _tokens_a_run(study, row.arm)}
    arm |= {"selected": None, "optimism": None, "estimate": None, "low": None, "high": None, "n": 0}
    selected, notes = found.seed_values if found is not None else (), list(row.notes)
    try:
        arm |= vars(confirm(study.values(row.arm, study.design.metric), alpha=study.design.alpha))
        arm["selected"] = float(np.mean(selected)) if selected else None
    except UserError as error:
        notes.append(str(error))
    arm["note"] = "; ".join(notes)
    if row.arm == study.design.control:
        return arm
    effect = row.effect
    arm |= {"effect": effect and effect.estimate, "effect_low": effect and effect.low}
    arm |= {"effect_high": effect and effect.high, "selected_effect": None}
    if selected and control is not None and control.seed_values:
        arm["selected_effect"] = float(np.mean(selected) - np.mean(control.seed_values))
        arm["optimism"] = arm["selected_effect"] - effect.estimate if effect else None
    return arm


def _tokens_a_run(study: Study, arm: str) -> int | None:
    """Training tokens of an arm's runs, those of stages before them included; None before one is recorded."""
    for record in study.records_of(arm):
        trainer = record.config["trainer"]
        own = int(trainer["steps"] * trainer["batch_size"] * record.config["data"]["sequence_length"])
        return own + round(record.before.get("tokens", 0))
    return None


def print_report(answer: SearchAnswer, out: Terminal) -> None:
    """The report for people."""
    content, judgement = answer.content, answer.judgement
    counts = content["configurations"]
    out.print(content["question"], style="bold")
    out.print(
        f"{counted(counts['complete'], 'configuration')} trained to the end, {counts['paused']} paused before, "
        f"{counts['failed']} failed; {short(content['tokens'])} tokens"
    )
    for words in (*content["warnings"], *(f"note: {note}" for note in content["notes"])):
        out.print(words, style="yellow")
    for failure in content["failures"][:SHOWN]:
        out.print(f"trial {failure['trial']} failed: {failure['reason']}", style="red")
    out.print()
    for table in tables_on(answer.tables, "terminal"):
        out.print(Group(*table_lines(table)))
    if judgement is None:
        out.print("not confirmed: `ablate run` trains the best and the control on fresh seeds", style="yellow")
    elif len(content["confirmation"]["arms"]) > 1:  # else there is nothing to judge, nor to export
        out.print(terminal_table(judgement, titled=False))
        found = content["confirmation"]
        out.print(f"to export: {found['winner'] or 'nothing yet'}: {found['winner_reason']}")
