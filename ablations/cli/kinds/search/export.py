"""`ablate export` of a search: the confirmed winner as a config with its evidence."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ablations.cli import studies
from ablations.cli.export import at_full_scale, check_options, named_arm
from ablations.cli.kinds.search.report import confirmed, load_results, report
from ablations.cli.terminal import console
from analysis.verdicts.arms import UNCONFIRMED
from analysis.verdicts.judge import judge
from core.errors import UserError
from core.records.designs import Design
from sweeps.export.arm import export
from sweeps.search.plan import SearchPlan, described
from sweeps.search.results import Results, confirmation
from sweeps.search.spec import Search


def run_export(arguments: argparse.Namespace) -> int:
    """Write the confirmed winner as a config with its evidence."""
    check_options(arguments)
    if arguments.format == "hf":
        raise UserError("--format hf: give the folder of one run; a search exports a config")
    results, folder = load_results(arguments)
    study = confirmed(results, folder)
    target = arguments.to or folder / "export"
    found = report(results, study)
    if study is None or study.missing:
        if not arguments.force:
            raise UserError(
                f"{arguments.name}: its best isn't confirmed yet, and the best of many looks better than it is: "
                f"{results.design.command} confirms it (--force exports it, marked as unconfirmed)"
            )
        return _export_unconfirmed(arguments, results, folder, found)
    judgement = judge(study)
    arm = arguments.arm or judgement.winner
    if arm is None:
        raise UserError(f"{arguments.name}: nothing can be exported: {judgement.winner_reason}")
    labels = {entry.name: [entry.label] for entry in study.design.arms}
    arm = named_arm(arm, labels, "was not confirmed; what was:")
    runs = [record for record in study.records_of(arm) if record.status == "complete"]
    reason = judgement.winner_reason.replace(UNCONFIRMED, "on fresh seeds")
    chosen = f"by the confirmation: {reason}" if arm == judgement.winner else "by hand (--arm)"
    entry = next(row for row in found["confirmation"]["arms"] if row["arm"] == arm)
    evidence = {"chosen": chosen, "confirmed": True, **{k: entry[k] for k in ("estimate", "low", "high", "n")}}
    evidence |= {"search": found} | judgement.to_dict()
    if arguments.target:
        return _at_full_scale(arguments, study.design, arm, runs, evidence, folder, by_hand=arm != judgement.winner)
    export(study.design, arm, runs, evidence, target)
    console().print(f"{arm}: {chosen}")
    console().unwrapped(f"config: {target / 'config.yaml'}")
    return 0


def _export_unconfirmed(arguments: argparse.Namespace, results: Results, folder: Path, found: dict[str, Any]) -> int:
    finalists = results.finalists()
    if not finalists:
        raise UserError(f"{arguments.name}: no configuration is trained to the end yet: {results.design.command}")
    known = {finalist: [described(found.settings)] for finalist, found in finalists.items()}
    name = named_arm(arguments.arm or next(iter(finalists)), known, "is no finalist; the finalists are")
    design = confirmation(SearchPlan.of_design(results.design), results).design
    arm = name if name in design.by_name else "control"
    evidence = {"chosen": "UNCONFIRMED: the best of the search's own values, which flatter it", "confirmed": False}
    told, target = evidence | {"search": found}, arguments.to or folder / "export"
    if arguments.target:
        by_hand = arguments.arm is not None
        return _at_full_scale(arguments, design, arm, finalists[name].records, told, folder, by_hand=by_hand)
    export(design, arm, finalists[name].records, told, target)
    console().unwrapped(f"{name}: unconfirmed; config: {target / 'config.yaml'}")
    return 0


def _at_full_scale(
    arguments: argparse.Namespace,
    design: Design,
    arm: str,
    runs: Sequence[Any],
    told: Any,
    folder: Path,
    *,
    by_hand: bool,
) -> int:
    declaration = studies.declared(arguments.name)[1]
    assert isinstance(declaration, Search)
    matched = declaration.match is not None
    target = arguments.to or folder / "export" / Path(arguments.target).stem
    return at_full_scale(arguments, design, arm, runs, told, target, by_hand=by_hand, matched=matched)
