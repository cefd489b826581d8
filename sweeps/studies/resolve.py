"""Planning of ablations: a declaration becomes a design and its runs, checked before anything is trained.

A confirmation trains the winner of an ablation and its control on fresh seeds: the best of several arms looks better than it
is on the seeds that it was chosen on.
"""

import shlex
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from core.config.loading import parse_overrides
from core.config.run import config_hash, to_dict
from core.data.corpora import load as load_corpus
from core.data.inputs import fingerprint
from core.errors import UserError
from core.records.designs import Design, DesignArm
from core.training.checks import check as check_run
from sweeps.studies.ablation import Ablation
from sweeps.studies.arms import ResolvedArm, describe_arm, planned_runs
from sweeps.studies.plan import Plan
from sweeps.studies.study import CONFIRMATION_SEED, confirm_size, edition_of


def plan(name: str, ablation: Ablation, *, size: str = "full", overrides: Sequence[str] = ()) -> Plan:
    """Resolve a declaration into runs.

    overrides: command-line `key=value` settings over the declaration's own, for every arm.
    Raises UserError for everything that would only fail, or mislead, once runs are trained.
    """
    edition, arms = _resolved(name, ablation, size, overrides)
    _check_arms(edition, arms)
    fingerprints = [fingerprint(each.config) for each in arms]
    command = ["ablate", "run", name, *(["--size", size] if size != "full" else []), *overrides]
    metrics = (edition.metric, *edition.secondary)
    entries = []
    for each, data in zip(arms, fingerprints, strict=True):
        entry = describe_arm(each.arm, each.config)
        notes = () if each is arms[0] else edition.source.notes(each, arms[0], metrics)
        entries.append(replace(entry, notes=(*entry.notes, *notes), data_fingerprint=data, **each.details()))
    design = _design(
        edition,
        arms,
        entries,
        ablation=name,
        size=size,
        overrides=tuple(overrides),
        # Arms whose data differ (a factor under data.) have one fingerprint each.
        data_fingerprint=" ".join(dict.fromkeys(fingerprints)),
        command=shlex.join(command),
    )
    first_data = [fingerprint(each.first) if each.first else "" for each in arms]
    runs = planned_runs(zip(arms, fingerprints, first_data, strict=True), edition.seeds)
    return Plan(name=name, size=size, design=design, runs=runs)


def outline(
    name: str, ablation: Ablation, *, size: str = "full", overrides: Sequence[str] = ()
) -> tuple[Design, dict[str, dict[str, Any]]]:
    """The part of a design that follows from the declaration, and each arm's config; reads no data or other file.

    Raises UserError as `plan` does, for what this shows.
    """
    edition, arms = _resolved(name, ablation, size, overrides)
    entries = [describe_arm(each.arm, each.config) for each in arms]
    return _design(edition, arms, entries), {each.arm.name: to_dict(each.config) for each in arms}


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


def _resolved(
    name: str, ablation: Ablation, size: str, overrides: Sequence[str]
) -> tuple[Ablation, Sequence[ResolvedArm]]:
    settings = parse_overrides(overrides)
    edition = edition_of(name, ablation, size)
    edition.check(settings)
    return edition, edition.source.resolve(edition.shared(settings))


def _design(edition: Ablation, arms: Sequence[ResolvedArm], entries: Sequence[DesignArm], **planned: Any) -> Design:
    """Question, arms and rules of a design. planned: its other fields, those of its data among them."""
    planned = {"ablation": "", "size": "", "overrides": (), "data_fingerprint": ""} | planned
    return Design(
        kind=edition.kind,
        question=edition.question,
        base=edition.base,
        metric=edition.metric,
        secondary=tuple(edition.secondary),
        margin=edition.margin,
        alpha=edition.alpha,
        power=edition.power,
        control=arms[0].arm.name,
        seeds=tuple(edition.seeds),
        factors=edition.source.factors(arms),
        arms=tuple(entries),
        contrasts=edition.source.contrasts(arms),
        devices=edition.resources.devices,
        **edition.describe_parts(arms),
        **planned,
    )


def _check_arms(ablation: Ablation, arms: Sequence[ResolvedArm]) -> None:
    """Check that each config can be trained and is another one than the arms' before it."""
    owners: dict[str, str] = {}
    for each in arms:
        # Levels such as 1 and 1.0 are told apart by nothing but the config that they make.
        twin = owners.setdefault(config_hash(each.config, with_seed=False), each.arm.name)
        if twin != each.arm.name:
            raise UserError(
                f"factors: the arms {twin} and {each.arm.name} have the same config; drop one of the levels"
            )
        _check_trainable(ablation, each)
    for each in arms:
        try:
            if each.first is not None:
                check_run(each.first, ablation.resources.devices)
        except UserError as error:
            raise UserError(f"arm {each.arm.name}, first stage: {error}") from None


def _check_trainable(ablation: Ablation, each: ResolvedArm) -> None:
    try:
        check_run(each.config, ablation.resources.devices)
    except UserError as error:
        varied = any(key in str(error) for key in each.arm.settings)
        raise UserError(f"arm {each.arm.name}: {error}" if varied else str(error)) from None
    data = each.config.data
    if "val/excess_nelbo" in (ablation.metric, *ablation.secondary) and load_corpus(data).entropy is None:
        raise UserError(
            f"metric val/excess_nelbo needs a source of known entropy, which data.corpus={data.corpus} is not; "
            "use data.corpus=markov, or the metric val/nelbo"
        )
