"""`ablate run --until-decided`: seeds are bought block by block; what is decided buys no more."""

import argparse
import sys
import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ablations.cli import studies as agenda
from ablations.cli.command import INTERRUPTED
from ablations.cli.declarations import say_before
from ablations.cli.launching import submit, train_here
from ablations.cli.looks import decisions_of, logged, note, note_retry, of_design, retried
from ablations.cli.status import tasks_said
from ablations.cli.terminal import console
from analysis.study import Study
from analysis.verdicts.headline import savings
from analysis.verdicts.until_decided import Course, Rule, course
from core.errors import UserError
from core.records.study_history import LOOK
from core.runtime.printable import say
from core.runtime.terminal import line
from core.runtime.units import counted
from sweeps.launch.pool import warm_workers
from sweeps.runs.folders import write_design
from sweeps.runs.status import status
from sweeps.runs.worker import TRAINER
from sweeps.storage.storage import choose_url
from sweeps.studies.plan import Plan

POLL_S = 10.0


def run_until_decided(arguments: argparse.Namespace, plan: Plan) -> int:
    """Train block after block until every comparison is decided or the seeds are spent."""
    if "ladder" in plan.design:
        raise UserError(f"--until-decided compares arms; {plan.name} is a ladder, to which a law is fitted")
    rule = Rule.of(len(plan.design["seeds"]), block=arguments.block)
    folder, before = arguments.out / plan.study_name, None
    _check_rule(folder, plan.design, rule)
    _tell_unlooked(folder, plan.design)
    say_before(folder, plan)
    kept = not arguments.dry_run
    found = _course(plan, rule, folder, kept=kept)
    if arguments.retry_failed:
        found = _retry(arguments, plan, rule, folder)
    here = arguments.launcher != "slurm"
    with warm_workers(TRAINER) if found.wanted and here else nullcontext():  # one for all blocks
        while found.wanted:
            _say(found)
            if found.wanted == before:
                raise UserError(
                    f"{len(found.wanted)} runs are neither recorded nor waiting: another process trains them, or lost them "
                    f"({_status(arguments, plan)} tells); this command goes on where they end"
                )
            ended = _train(
                arguments, plan.buy(found.wanted, _designed(plan, rule, folder, found.seeds)), retry_failed=False
            )
            if ended is not None:
                return ended
            before = found.wanted
            found = _course(plan, rule, folder)
    if kept:
        write_design(folder, _designed(plan, rule, folder, found.seeds))
    _say(found)
    failed = _study(plan, rule, folder, found).failed
    out = console()
    out.print(f"{plan.study_name}: {savings(found)}", markup=False)
    out.print(f"next: {agenda.command('report', arguments, plan.size)}", markup=False)
    if failed:
        out.print(
            line(f"{counted(failed, 'run')} failed", "red")
            + line(": the report names them; --retry-failed runs them again")
        )
    return 1 if failed else 0


def _tell_unlooked(folder: Path, design: Mapping[str, Any]) -> None:
    """Say so where runs were there before the first look: what somebody saw of them isn't allowed for."""
    study = Study.load(folder, design)
    if study is not None and study.cells and not of_design(logged(folder), design):
        known = f"note: {counted(len(study.cells), 'run')} {'was' if len(study.cells) == 1 else 'were'} recorded"
        shown = [event for event in study.history if event["event"] == LOOK and event["recorded"]]
        if shown:
            seen = f"and shown (ablate {shown[-1]['by']}, {shown[-1]['at'][:10]}) before seeds are bought until decided"
            say(f"{known} {seen}: the report says which p-values hold for all that", file=sys.stderr)
        else:
            say(f"{known} before any look was noted; error rates hold if nobody saw their results", file=sys.stderr)


def _check_rule(folder: Path, design: Mapping[str, Any], rule: Rule) -> None:
    for look in of_design(logged(folder), design):
        if look["rule"] != asdict(rule):
            was, now = look["rule"], asdict(rule)
            flags = {"fixed": "--seeds", "block": "--block"}
            back = " ".join(f"{flag} {was[name]}" for name, flag in flags.items() if was[name] != now[name])
            raise UserError(
                "these runs were looked at by another rule, and p-values hold for that one alone: "
                f"{f'use {back}, or ' if back else ''}start a new sweep in another --out"
            )


def _course(plan: Plan, rule: Rule, folder: Path, *, kept: bool = True) -> Course:
    """The sweep's course by its records; looks that weren't noted yet noted, where they are `kept`, and those that came out
    otherwise."""
    found = course(_study(plan, rule, folder))
    noted = {look["seeds"]: look["decisions"] for look in of_design(logged(folder), plan.design)}
    new = [look for look in found.looks if noted.get(look.seeds) != decisions_of(look)]
    for look in new if kept else ():
        said = {"seeds": look.seeds, "decisions": decisions_of(look), "steps": [asdict(step) for step in look.steps]}
        note(folder, plan.design, asdict(rule), said)
    return found


def _designed(plan: Plan, rule: Rule, folder: Path, seeds: Mapping[str, int]) -> dict[str, Any]:
    return rule.designed(plan.design, seeds, retried(logged(folder), plan.design))


def _study(plan: Plan, rule: Rule, folder: Path, found: Course | None = None) -> Study:
    study = Study.load(folder, _designed(plan, rule, folder, found.seeds if found else {}))
    assert study is not None  # it has a design
    return study


def _retry(arguments: argparse.Namespace, plan: Plan, rule: Rule, folder: Path) -> Course:
    cells = _study(plan, rule, folder).cells
    failed = [cell for cell, record in cells.items() if record.status == "failed"]
    if failed:
        bought = _course(plan, rule, folder, kept=not arguments.dry_run).seeds
        if not arguments.dry_run:
            note_retry(folder, plan.design, failed)
        ended = _train(arguments, plan.buy(failed, _designed(plan, rule, folder, bought)), retry_failed=True)
        if ended is not None:
            raise SystemExit(ended)
    return _course(plan, rule, folder, kept=not arguments.dry_run)


def _train(arguments: argparse.Namespace, block: Plan, *, retry_failed: bool) -> int | None:
    """Train a block; an exit status where the sweep ends with it."""
    if arguments.launcher == "slurm":
        return _on_slurm(arguments, block, retry_failed)
    return INTERRUPTED if train_here(arguments, block, retry_failed=retry_failed).interrupted else None


def _on_slurm(arguments: argparse.Namespace, block: Plan, retry_failed: bool) -> int | None:
    """Submit a block and wait for it. Whoever ends this process leaves the job as it is: the same command goes on."""
    submit(arguments, block, retry_failed=retry_failed)
    if arguments.dry_run:
        return 0
    out = arguments.out.absolute()
    url = choose_url(arguments.storage, out, out / block.study_name)
    before = ""
    while True:
        now = status(block.study_name, out, url)
        if not now.is_under_way or (now.tasks == () and not now.of("running")):
            return None
        said = "; ".join(tasks_said(now))
        if said != before:
            say(said, file=sys.stderr)
        before = said
        time.sleep(POLL_S)


def _say(found: Course) -> None:
    """The newest look's decisions, and what is trained next, in a line each."""
    if found.looks:
        look = found.looks[-1]
        left = sum(decision == "open" for decision in found.decisions.values())
        say(
            f"look after {counted(look.seeds, 'seed')}: {'; '.join(look.decided) or 'nothing decided'}; {left} open",
            file=sys.stderr,
        )
    if found.wanted:
        arms = len({arm for arm, _ in found.wanted})
        say(
            f"next block: {counted(len(found.wanted), 'run')} of {counted(arms, 'arm')}, to "
            f"{counted(max(found.seeds.values()), 'seed')}",
            file=sys.stderr,
        )


def _status(arguments: argparse.Namespace, plan: Plan) -> str:
    return agenda.command("status", arguments, plan.size)
