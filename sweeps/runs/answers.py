"""Finished runs, decoded in the ways that they lack: each answer left beside its run's record."""

import functools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from core.diffusion.decode_rules import DECODE_RULES
from core.diffusion.sampling import Sampling
from core.records import decoded
from core.records.decoded import Decoded
from sweeps.runs.folders import RunLock, recorded, run_folder
from sweeps.studies.plan import Plan, PlannedRun


@dataclass(frozen=True)
class Asked:
    """One finished run and the ways in which it is still to be decoded."""

    run: PlannedRun
    folder: Path
    ways: tuple[Decoded, ...]


def missing(plan: Plan, out: Path) -> Iterator[Asked]:
    """The finished runs of a plan that lack answers, failures included."""
    design = plan.design.decoders
    assert design is not None
    for run in plan.runs:
        folder = run_folder(plan, run, out)
        record = recorded(folder, run)
        if record is None or record.status != "complete":
            continue
        pairs = decoded.responses(design, record, folder)
        if todo := tuple(wanted for wanted, one in pairs if one is None or one.reason is not None):
            yield Asked(run, folder, todo)


def answer(asked: Asked, decode_seeds: int, device: str = "cpu") -> list[Decoded]:
    """Decode a run in every way that it lacks and leave what came of each beside its record; a failure with its reason.

    Nothing where another process is at it.
    """
    from core.probes.responses import exact_match  # torch, which whoever only looks for what is missing does without
    from core.training.weights import open_run  # torch, as above

    lock = RunLock(asked.folder)
    if not lock.acquire():
        return []
    try:
        config, denoiser = open_run(asked.folder)
        matches = functools.partial(exact_match, config, denoiser.to(device))
        return [_answer(way, matches, asked.folder, decode_seeds) for way in asked.ways]
    finally:
        lock.release()


def _answer(way: Decoded, matches: Callable[[Sampling, int], Any], folder: Path, decode_seeds: int) -> Decoded:
    """Decode in one way. matches: of settings and a number of prompts, as `exact_match` returns them."""
    settings, began = Sampling(**way.settings), time.perf_counter()
    by_chance = settings.temperature > 0 or DECODE_RULES[settings.remasking].random
    try:
        results = [
            matches(replace(settings, seed=seed), way.examples) for seed in range(decode_seeds if by_chance else 1)
        ]
        found = replace(
            way,
            right=["".join("1" if right else "0" for right in result.right_N) for result in results],
            calls=sum(float(result.nfe_N.mean()) for result in results) / len(results),
            length=settings.length,
            seconds=time.perf_counter() - began,
        )
    except Exception as error:
        found = replace(way, reason=f"{type(error).__name__}: {error}".strip().splitlines()[0])
    decoded.write(found, folder)
    return found
