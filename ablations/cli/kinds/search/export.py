"""`ablate export` of a search: the confirmed winner as a config with its evidence."""

import argparse
from pathlib import Path
from typing import Any

from ablations.cli import studies
from ablations.cli.export import at_full_scale, check_options, named_arm
from ablations.cli.kinds.search.report import answer_of, confirmed, load_results
from ablations.cli.terminal import console
from analysis.verdicts.answer import Judgement
from analysis.verdicts.arms import UNCONFIRMED
from core.errors import UserError
from core.records.designs import Design
from core.records.run_record import RunRecord
from sweeps.export.arm import CONFIG, export
from sweeps.search.plan import SearchPlan, described
from sweeps.search.results import Results, confirmation
from sweeps.search.spec import Search


def run_export(arguments: argparse.Namespace) -> int:
    """Write the confirmed winner as a config with its evidence."""
    check_options(arguments)
    if arguments.format == "hf":
        raise UserError("--format hf: give the folder of one run; a search exports a config")
    results, folder = load_results(arguments)
    answer = answer_of(results, confirmed(results, folder))
    found, judgement = answer.to_dict(), answer.judgement
    if judgement is not None and not judgement.study.missing:
        design, arm, runs, evidence = _confirmed(arguments, judgement, found)
        name, line, by_hand = arm, f"{arm}: {evidence['chosen']}", arm != judgement.winner
    elif arguments.force:
        design, arm, name, runs = _unconfirmed(arguments, results)
        evidence = {"chosen": "UNCONFIRMED: the best of the search's own values, which flatter it", "confirmed": False}
        evidence |= {"search": found}
        line, by_hand = f"{name}: unconfirmed", arguments.arm is not None
    else:
        raise UserError(
            f"{arguments.name}: its best isn't confirmed yet, and the best of many looks better than it is: "
            f"{results.design.command} confirms it (--force exports it, marked as unconfirmed)"
        )
    if arguments.target:
        declaration = studies.declared(arguments.name)[1]
        assert isinstance(declaration, Search)
        matched, target = declaration.match is not None, folder / "export" / Path(arguments.target).stem
        target = arguments.to or target
        return at_full_scale(arguments, design, arm, runs, evidence, target, by_hand=by_hand, matched=matched)
    target = arguments.to or folder / "export"
    export(design, arm, runs, evidence, target)
    console().print(line)
    console().unwrapped(f"config: {target / CONFIG}")
    return 0


def _confirmed(
    arguments: argparse.Namespace, judgement: Judgement, found: dict[str, Any]
) -> tuple[Design, str, list[RunRecord], dict[str, Any]]:
    """The winner, or the arm that was asked for: its design, name, runs and evidence."""
    study = judgement.study
    arm = arguments.arm or judgement.winner
    if arm is None:
        raise UserError(f"{arguments.name}: nothing can be exported: {judgement.winner_reason}")
    labels = {entry.name: [entry.label] for entry in study.design.arms}
    arm = named_arm(arm, labels, "was not confirmed; what was:")
    reason = judgement.winner_reason.replace(UNCONFIRMED, "on fresh seeds")
    chosen = f"by the confirmation: {reason}" if arm == judgement.winner else "by hand (--arm)"
    entry = next(row for row in found["confirmation"]["arms"] if row["arm"] == arm)
    evidence = {"chosen": chosen, "confirmed": True, **{key: entry[key] for key in ("estimate", "low", "high", "n")}}
    runs = [record for record in study.records_of(arm) if record.status == "complete"]
    return study.design, arm, runs, evidence | {"search": found} | judgement.to_dict()


def _unconfirmed(arguments: argparse.Namespace, results: Results) -> tuple[Design, str, str, list[RunRecord]]:
    """The best by the search's own values: the confirmation's design, its arm there, its own name and its runs."""
    finalists = results.finalists()
    if not finalists:
        raise UserError(f"{arguments.name}: no configuration is trained to the end yet: {results.design.command}")
    known = {name: [described(finalist.settings)] for name, finalist in finalists.items()}
    name = named_arm(arguments.arm or next(iter(finalists)), known, "is no finalist; the finalists are")
    design = confirmation(SearchPlan.of_design(results.design), results).design
    return design, name if name in design.by_name else "control", name, list(finalists[name].records)
