"""`ablate confirm`: the winner of an ablation beside its control on seeds that had no part in the choice."""

import argparse
from pathlib import Path

from ablations.cli import studies
from ablations.cli.command import INTERRUPTED
from ablations.cli.launching import check_flags, launcher_of, submit, train_here
from ablations.cli.recorded import load_study
from ablations.cli.terminal import console
from analysis.report.html import write_report
from analysis.report.terminal import terminal_table
from analysis.study import Study
from analysis.verdicts.answer import Judgement
from analysis.verdicts.judge import judge
from core.data.corpora import describe
from core.errors import UserError
from core.runtime.printable import say
from core.runtime.units import counted, significant
from sweeps.runs.history import add_look
from sweeps.studies.resolve import confirmation_plan, fresh_seeds
from sweeps.studies.study import confirm_size, study_name


def run_confirm(arguments: argparse.Namespace) -> int:
    """Train the winner and the control on fresh seeds, here or on a cluster, and say what these alone find."""
    check_flags(arguments)
    study, _ = load_study(arguments)
    judgement, design = judge(study), study.design
    arm = judgement.winner
    if arm is None or arm == design.control:
        raise UserError(f"{arguments.name}: there is no winner to confirm: {judgement.winner_reason}")
    name, ablation = studies.resolve(arguments.name)
    seeds = fresh_seeds(design, arguments.seeds or len(design.seeds))
    more = ["--seeds", str(arguments.seeds)] if arguments.seeds else []
    command = studies.command("confirm", arguments, design.size, more)
    plan = confirmation_plan(name, ablation, design, arm, seeds, command)
    say("\n".join(describe(run.config.data for run in plan.runs)))
    if not launcher_of(arguments).here:
        return submit(arguments, plan, retry_failed=arguments.retry_failed)
    summary = train_here(arguments, plan, retry_failed=arguments.retry_failed)
    if summary.interrupted:
        return INTERRUPTED
    folder = arguments.out / plan.study_name
    confirming = Study.load(folder, plan.design)
    assert confirming is not None  # its runs were recorded, or failed with a record
    found = judge(confirming)
    write_report(confirming, found, folder / "report.html")
    add_look(folder, "confirm", len(seeds), confirming.complete, winner=found.winner)
    out = console()
    out.print(terminal_table(found))
    out.unwrapped(f"report: {folder / 'report.html'}")
    out.unwrapped(f"{study_name(design.ablation, design.size)}: {verdict(found, arm)}")
    return 1 if summary.failed + summary.failed_before or summary.missing else 0


def verdict(found: Judgement, arm: str) -> str:
    """The verdict on fresh seeds in a sentence, with the study's notes on earlier looks and attempts."""
    return ". ".join([_verdict(found, arm), *(note.rstrip(".") for note in found.notes)])


def _verdict(found: Judgement, arm: str) -> str:
    if found.counts["missing"]:
        return f"{arm} isn't confirmed yet: {counted(found.counts['missing'], 'run')} of the confirmation missing"
    row = next(row for row in found.comparisons[0].rows if row.arm == arm)
    if found.winner == arm and row.effect is not None:
        effect = row.effect
        estimate, low, high = (significant(value, 3, "+") for value in (effect.estimate, effect.low, effect.high))
        said = f"{arm} is confirmed on {counted(effect.n, 'fresh seed')}: {estimate} [{low}, {high}]"
        return f"{said} {found.comparisons[0].unit}".rstrip()
    return f"{arm} is not confirmed: on fresh seeds it is: {row.verdict}"


def confirmation_of(arguments: argparse.Namespace, study: Study, arm: str) -> tuple[Study, Judgement] | None:
    """Records of the arm on fresh seeds, in the design of its last confirmation; None without any."""
    design = study.design
    folder: Path = arguments.out / study_name(design.ablation, confirm_size(design.size))
    confirming = Study.load(folder) if folder.is_dir() else None
    hashes = {entry.name: entry.hash for entry in design.arms}
    if confirming is None or any(hashes.get(entry.name) != entry.hash for entry in confirming.design.arms):
        return None
    data = set(confirming.design.data_fingerprint.split(" "))  # of two arms: where data are a factor, not all
    if confirming.design.confirms != arm or not data <= set(design.data_fingerprint.split(" ")):
        return None
    return confirming, judge(confirming)
