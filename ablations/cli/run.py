"""`ablate run`: train what isn't recorded yet, here or on a cluster; until decided, in blocks of seeds."""

import argparse
import sys
import time
from collections import Counter
from contextlib import nullcontext
from pathlib import Path

from ablations.cli import studies
from ablations.cli.command import INTERRUPTED
from ablations.cli.decode import decode_here
from ablations.cli.launching import check_flags, launcher_of, submit, train_here, trained_elsewhere
from ablations.cli.plan import make_plan, power_of
from ablations.cli.recorded import say_before
from ablations.cli.status import tasks_said
from ablations.cli.terminal import console
from analysis.study import Study
from analysis.verdicts.sequential_log import analyse, check_fixed, check_rule, sequential_design
from analysis.verdicts.until_decided import Rule, SequentialRun
from core.data.corpora import describe
from core.errors import UserError
from core.records import interim_analyses
from core.records.designs import Design
from core.records.study_history import Look
from core.runtime.printable import say
from core.runtime.terminal import line
from core.runtime.units import counted
from sweeps.launch.launcher import tasks_of
from sweeps.launch.pool import TRAINER, warm_workers
from sweeps.runs.folders import write_design
from sweeps.runs.status import status
from sweeps.storage.storage import choose_url
from sweeps.studies.plan import Plan

POLL_S = 10.0


def run_run(arguments: argparse.Namespace) -> int:
    """Train what isn't recorded yet: here, or on a cluster."""
    check_flags(arguments)
    plan = make_plan(arguments)
    refused = power_of(plan.design)["refused"]
    if refused and not arguments.exploratory:
        raise UserError(f"{refused} (--exploratory runs it anyway)")
    say("\n".join(describe(run.config.data for run in plan.runs)))
    if arguments.until_decided:
        return _run_until_decided(arguments, plan)
    folder = arguments.out / plan.study_name
    check_fixed(folder, plan.design)
    say_before(folder, plan)
    if not launcher_of(arguments).here:
        return submit(arguments, plan, retry_failed=arguments.retry_failed)
    summary = train_here(arguments, plan, retry_failed=arguments.retry_failed)
    if summary.interrupted:
        return INTERRUPTED
    out = console()
    failed = summary.failed + summary.failed_before
    undecoded = 0
    if plan.design.decoders is not None:
        undecoded = decode_here(arguments, plan, out)
    out.print(
        f"{plan.study_name}: {counted(summary.done, 'run')} trained, {summary.reused} recorded before, {failed} failed, "
        f"{summary.missing} missing"
    )
    if summary.elsewhere:
        out.print(trained_elsewhere(arguments, summary.elsewhere, plan.size))
    out.print(f"next: {studies.command('report', arguments, plan.size)}")
    if failed:
        out.print(line("some runs failed", "red") + line(": the report names them; --retry-failed runs them again"))
    return 1 if failed or summary.missing or undecoded else 0


def _run_until_decided(arguments: argparse.Namespace, plan: Plan) -> int:
    if plan.design.ladder is not None:
        raise UserError(f"--until-decided compares arms; {plan.name} is a ladder, to which a law is fitted")
    rule = Rule.of(len(plan.design.seeds), block=arguments.block)
    folder, noted = arguments.out / plan.study_name, not arguments.dry_run
    check_rule(folder, plan.design, rule)
    _say_unanalysed(folder, plan.design)
    say_before(folder, plan)
    found = analyse(folder, plan.design, rule, noted=noted)

    if arguments.retry_failed:
        if (ended := _retry_failed(arguments, plan, rule, found)) is not None:
            return ended
        found = analyse(folder, plan.design, rule, noted=noted)
    with warm_workers(TRAINER) if found.wanted and launcher_of(arguments).here else nullcontext():  # for all blocks
        last = _train_blocks(arguments, plan, rule, found)
    if isinstance(last, int):
        return last
    design = sequential_design(folder, plan.design, rule, last.seeds)
    if noted:
        write_design(folder, design)
    _say_analysis(last)
    study = Study.load(folder, design)
    assert study is not None  # it has a design
    out = console()
    out.print(f"{plan.study_name}: {last.savings}")
    out.print(f"next: {studies.command('report', arguments, plan.size)}")
    if study.failed:
        failed = line(f"{counted(study.failed, 'run')} failed", "red")
        out.print(failed + line(": the report names them; --retry-failed runs them again"))
    return 1 if study.failed else 0


def _train_blocks(arguments: argparse.Namespace, plan: Plan, rule: Rule, found: SequentialRun) -> SequentialRun | int:
    """Train what an analysis wants and analyse again, until nothing is wanted.

    Returns the last analysis, or an exit status where the command ends. Raises UserError where a block changes nothing.
    """
    folder, before = arguments.out / plan.study_name, None
    while found.wanted:
        if found.wanted == before:
            raise UserError(
                f"{len(found.wanted)} runs are neither recorded nor waiting: another process trains them, or lost them "
                f"({studies.command('status', arguments, plan.size)} tells); this command goes on where they end"
            )
        _say_analysis(found)
        design = sequential_design(folder, plan.design, rule, found.seeds)
        if (ended := _train_block(arguments, plan.buy(found.wanted, design), retry_failed=False)) is not None:
            return ended
        found, before = analyse(folder, plan.design, rule), found.wanted
    return found


def _say_unanalysed(folder: Path, design: Design) -> None:
    """Say so where runs were there before the first analysis: what somebody saw of them isn't allowed for."""
    study = Study.load(folder, design)
    if study is None or not study.cells or interim_analyses.of_design(interim_analyses.read(folder), design):
        return
    known = f"note: {counted(len(study.cells), 'run')} {'was' if len(study.cells) == 1 else 'were'} recorded"
    shown = [event for event in study.history if isinstance(event, Look) and event.recorded]
    if shown:
        seen = f"and shown (ablate {shown[-1].by}, {shown[-1].at[:10]}) before seeds are bought until decided"
        say(f"{known} {seen}: the report says which p-values hold for all that", file=sys.stderr)
    else:
        say(f"{known} before any look was noted; error rates hold if nobody saw their results", file=sys.stderr)


def _retry_failed(arguments: argparse.Namespace, plan: Plan, rule: Rule, found: SequentialRun) -> int | None:
    """Train failed runs again; an exit status where the command ends with it."""
    folder = arguments.out / plan.study_name
    study = Study.load(folder, sequential_design(folder, plan.design, rule, {}))
    assert study is not None  # it has a design
    failed = [cell for cell, record in study.cells.items() if record.status == "failed"]
    if not failed:
        return None
    if not arguments.dry_run:
        interim_analyses.add_retry(folder, plan.design, failed)
    design = sequential_design(folder, plan.design, rule, found.seeds)
    return _train_block(arguments, plan.buy(failed, design), retry_failed=True)


def _train_block(arguments: argparse.Namespace, block: Plan, *, retry_failed: bool) -> int | None:
    """Train a block, or submit it and wait; an exit status where the command ends with it."""
    if launcher_of(arguments).here:
        return INTERRUPTED if train_here(arguments, block, retry_failed=retry_failed).interrupted else None
    submit(arguments, block, retry_failed=retry_failed)
    if arguments.dry_run:
        return 0
    out = arguments.out.absolute()
    url = choose_url(arguments.storage, out, out / block.study_name)
    _wait(block.study_name, out, url)
    return None


def _wait(study: str, out: Path, storage_url: str) -> None:
    """Wait until no run of a study is queued or in training, and say what changes."""
    before = None
    while True:
        now = status(study, out, storage_url, tasks_of=tasks_of)
        if not now.is_under_way or (now.tasks == () and not now.of("running")):
            return
        states = Counter((task.state, task.reason) for task in now.tasks or ())  # not the time that they have left
        if (states, now.silence) != before:
            say("; ".join(tasks_said(now)), file=sys.stderr)
        before = states, now.silence
        time.sleep(POLL_S)


def _say_analysis(found: SequentialRun) -> None:
    """Say the newest analysis's decisions, and what is trained next, in a line each."""
    if found.looks:
        analysis = found.looks[-1]
        left = sum(decision == "open" for decision in found.decisions.values())
        decided = "; ".join(analysis.decided) or "nothing decided"
        say(f"look after {counted(analysis.seeds, 'seed')}: {decided}; {left} open", file=sys.stderr)
    if found.wanted:
        arms, seeds = len({arm for arm, _ in found.wanted}), counted(max(found.seeds.values()), "seed")
        say(
            f"next block: {counted(len(found.wanted), 'run')} of {counted(arms, 'arm')}, to {seeds}",
            file=sys.stderr,
        )
