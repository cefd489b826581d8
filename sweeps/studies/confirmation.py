"""Confirmation: the winner of an ablation and its control, trained on seeds that had no part in the choice.

The best of several arms looks better than it is on the seeds that it was chosen on; fresh seeds owe it nothing.
"""

from collections.abc import Sequence
from dataclasses import replace

from core.errors import UserError
from core.records.designs import Design
from sweeps.studies.ablation import Ablation
from sweeps.studies.plan import Plan
from sweeps.studies.resolve import plan
from sweeps.studies.study import CONFIRMATION_SEED, confirm_size, edition_of


def fresh_seeds(design: Design, count: int) -> range:
    """`count` seeds that no edition chooses on; those that follow the design's own where it has used these too.

    Raises UserError for fewer than 2, which give no interval.
    """
    if count < 2:
        raise UserError(f"--seeds must be at least 2, not {count}: a single fresh seed gives no interval")
    first = max(CONFIRMATION_SEED, max(design.seeds) + 1)
    return range(first, first + count)


def confirmation_plan(
    name: str, ablation: Ablation, design: Design, arm: str, seeds: Sequence[int], command: str
) -> Plan:
    """The plan of a design's control and one arm of it on fresh seeds, with nothing else to compare.

    command: what runs it. Raises UserError where seeds aren't fresh, and where the declaration no longer says the arm as it
    was trained.
    """
    known = design.by_name
    if used := sorted(set(seeds) & set(design.seeds)):
        raise UserError(f"seeds {used} had a part in the choice: confirm on seeds above {max(design.seeds)}")
    size = design.size
    edition = edition_of(name, ablation, size)
    fields = edition.source.alone(known[design.control], known[arm])
    alone = replace(edition, **fields, decoders=None, seeds=tuple(seeds), sizes={})
    planned = plan(name, alone, overrides=design.overrides)
    for entry in planned.design.arms:
        if entry.name not in known or entry.hash != known[entry.name].hash:
            raise UserError(
                f"{name}: the declaration, or the version that reads it, has changed since {entry.name} was trained: "
                f"run it again with {design.command}"
            )
    told = replace(
        planned.design, size=confirm_size(size), command=command, confirms=arm, declared_in=design.declared_in
    )
    return replace(planned, size=confirm_size(size), design=told)
