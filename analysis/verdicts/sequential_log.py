"""Interim analyses held against those that were noted at the time (core.records.interim_analyses)."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path

from analysis.study import Study
from analysis.verdicts.until_decided import Rule, SequentialRun, sequential_run
from core.errors import UserError
from core.records.designs import Design
from core.records.interim_analyses import add, of_design, read, retried
from core.runtime.units import counted


def check_fixed(folder: Path, design: Design) -> None:
    """Refuse a fixed design of another number of seeds than the analysed one: its p-values don't allow for the analyses.

    All the seeds that were planned from the start are a fixed design whatever was analysed on the way.
    """
    noted = of_design(read(folder), design)
    if noted and noted[-1]["rule"]["fixed"] != len(design.seeds):
        raise UserError(
            f"these runs were looked at after {counted(noted[-1]['seeds'], 'seed')}, which a fixed design's p-values don't "
            "allow for: go on with --until-decided, or start a new sweep in another --out"
        )


def check_rule(folder: Path, design: Design, rule: Rule) -> None:
    """Refuse a rule that isn't the one by which these runs were analysed before."""
    for entry in of_design(read(folder), design):
        was, now = entry["rule"], asdict(rule)
        if was != now:
            flags = {"fixed": "--seeds", "block": "--block"}
            back = " ".join(f"{flag} {was[name]}" for name, flag in flags.items() if was[name] != now[name])
            raise UserError(
                "these runs were looked at by another rule, and p-values hold for that one alone: "
                f"{f'use {back}, or ' if back else ''}start a new sweep in another --out"
            )


def sequential_design(folder: Path, design: Design, rule: Rule, seeds: Mapping[str, int]) -> Design:
    """The design with its rule, the seeds per arm and the runs that were trained again after an analysis."""
    return rule.designed(design, seeds, retried(read(folder), design))


def analyse(folder: Path, design: Design, rule: Rule, *, noted: bool = True) -> SequentialRun:
    """Compute a sequential run from its records; note analyses that are new, or have other decisions than were noted."""
    study = Study.load(folder, sequential_design(folder, design, rule, {}))
    assert study is not None  # it has a design
    run = sequential_run(study)
    known = {entry["seeds"]: entry["decisions"] for entry in of_design(read(folder), design)}
    for analysis in run.looks if noted else ():
        if known.get(analysis.seeds) != analysis.decisions:
            steps = [asdict(step) for step in analysis.steps]
            content = {"seeds": analysis.seeds, "decisions": analysis.decisions, "steps": steps}
            add(folder, design, asdict(rule), content)
    return run


def contradictions(folder: Path) -> Iterator[tuple[str, bool]]:
    """Noted analyses that the records contradict, in words; and whether that is only a note, as runs that failed were tried
    again and analysed since. Analyses of other designs aren't looked at."""
    entries = read(folder)
    if not entries:
        return
    study = Study.load(folder)
    mine = of_design(entries, study.design) if study else entries
    if study is None or study.design.adaptive is None:
        if mine:
            planned = study is not None and mine[-1]["rule"]["fixed"] == len(study.design.seeds)
            yield (
                f"the results were looked at {counted(len(mine), 'time')}, and this design says nothing of it",
                planned,
            )
        return
    now = {analysis.seeds: analysis.decisions for analysis in sequential_run(study).looks}
    newest = {entry["seeds"]: entry for entry in mine}
    for entry in mine:
        if entry["seeds"] in now and entry["decisions"] != now[entry["seeds"]]:
            after = f"the look after {counted(entry['seeds'], 'seed')} of {entry['at']}"
            yield f"{after} decided otherwise than the records say now", entry is not newest[entry["seeds"]]
