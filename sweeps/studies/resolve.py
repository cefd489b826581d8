"""A declaration becomes a plan: every run that it needs, checked before anything is trained."""

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from core.config.loading import build, parse_overrides
from core.config.model import SEES_OTHERS
from core.config.presets import preset
from core.config.run import RunConfig, config_hash, content_hash, to_dict
from core.data.corpora import load as load_corpus
from core.errors import UserError
from core.model.flops import count, flops_per_token
from core.records.inputs import fingerprint
from core.records.likelihood_kind import ACROSS, incomparable, likelihood
from core.training.checks import check as check_run
from sweeps.studies import decoders
from sweeps.studies.ablation import Ablation, Arm, Factor, Ladder
from sweeps.studies.arms import contrasted, expand
from sweeps.studies.checks import check, edition_of
from sweeps.studies.ladder import Point, arms_of, climb
from sweeps.studies.matching import match_flops
from sweeps.studies.plan import Plan, PlannedRun
from sweeps.studies.recipes import Prepared, prepare

UNEQUAL = 0.01  # FLOPs per token that differ by more are told beside the verdict

__all__ = ["Plan", "PlannedRun", "expand", "outline", "plan"]


def plan(name: str, ablation: Ablation, *, size: str = "full", overrides: Sequence[str] = ()) -> Plan:
    """Resolve a declaration into runs.

    overrides: command-line `key=value` settings over the declaration's own, for every arm.
    Raises UserError for everything that would only fail, or mislead, once runs are trained.
    """
    settings = parse_overrides(overrides)
    edition = edition_of(name, ablation, size)
    check(edition, settings)
    points, staged, arms, configs = _resolved(edition, settings)
    _unlike(edition, arms, configs)
    firsts = {each.arm.name: each.first for each in staged if each.first is not None}
    _check_first(edition, firsts)
    fingerprints = {arm.name: fingerprint(config) for arm, config in zip(arms, configs, strict=True)}
    command = ["ablate", "run", name, *(["--size", size] if size != "full" else []), *overrides]
    design: dict[str, Any] = {
        "ablation": name,
        "size": size,
        **_asked(edition),
        "control": arms[0].name,
        "seeds": list(edition.seeds),
        "factors": [
            {"key": f.key, "label": f.name, "levels": list(f.levels)} for f in edition.factors or _varied(arms)
        ],
        "arms": _described(edition, arms, configs),
        "contrasts": contrasted(edition, arms),
        "overrides": list(overrides),
        "devices": edition.resources.devices,
        # Arms whose data differ (a factor under data.) have one fingerprint each.
        "data_fingerprint": " ".join(dict.fromkeys(fingerprints.values())),
        "command": shlex.join(command),
    }
    if edition.decoders:
        design["decoders"] = decoders.describe(
            edition.decoders, {arm.name: config for arm, config in zip(arms, configs, strict=True)}
        )
    if edition.ladder:
        design["ladder"] = _targets(edition.ladder)
        for entry, point in zip(design["arms"], points, strict=True):
            entry["point"] = point.describe()
    for entry in design["arms"]:
        entry["data_fingerprint"] = fingerprints[entry["name"]]
    for each, entry in zip(staged, design["arms"], strict=bool(staged)):
        entry |= {"flops": each.flops}
        if each.first:
            entry |= {"first": to_dict(each.first), "first_data_fingerprint": fingerprint(each.first)}
        entry["notes"] += _of_stages(each, staged[0])
    runs = planned_runs(
        (
            (arm, config, fingerprints[arm.name], firsts.get(arm.name))
            for arm, config in zip(arms, configs, strict=True)
        ),
        edition.seeds,
    )
    return Plan(name=name, size=size, design=design, runs=runs)


def outline(
    name: str, ablation: Ablation, *, size: str = "full", overrides: Sequence[str] = ()
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """What of a design follows from the declaration alone, and each arm's config; no data or other file is looked at.

    Raises UserError as `plan` does, for what this shows.
    """
    settings = parse_overrides(overrides)
    edition = edition_of(name, ablation, size)
    check(edition, settings)
    _, _, arms, configs = _resolved(edition, settings)
    known = {arm.name: to_dict(config) for arm, config in zip(arms, configs, strict=True)}
    design = _asked(edition) | {
        "control": arms[0].name,
        "seeds": list(edition.seeds),
        "arms": [{"name": arm.name, "hash": content_hash(known[arm.name], with_seed=False)} for arm in arms],
        "contrasts": contrasted(edition, arms),
        "factors": [{"key": factor.key, "label": factor.name} for factor in edition.factors],
    }
    if edition.decoders:
        design["decoders"] = decoders.describe(edition.decoders, dict(zip(known, configs, strict=True)))
    if edition.ladder:
        design["ladder"] = _targets(edition.ladder)
    return design, known


def _targets(ladder: Ladder) -> dict[str, Any]:
    return {"targets": {name: asdict(target) for name, target in ladder.targets.items()}}


def _asked(edition: Ablation) -> dict[str, Any]:
    """What a design is to answer, and by what."""
    names = ("question", "base", "metric", "secondary", "margin", "alpha", "power")
    return {name: getattr(edition, name) for name in names} | {"secondary": list(edition.secondary)}


def _resolved(
    edition: Ablation, settings: Mapping[str, Any]
) -> tuple[list[Point], list[Prepared], tuple[Arm, ...], list[RunConfig]]:
    """A ladder's points, recipes' stages, and in any case the arms and their configs."""
    points = climb(edition, settings) if edition.ladder else []
    staged = prepare(edition, settings) if edition.recipes else []
    arms = arms_of(points) if points else tuple(each.arm for each in staged) or expand(edition)
    made = [point.config for point in points] or [each.config for each in staged]
    return points, staged, arms, made or _configs(edition, arms, settings)


def _configs(ablation: Ablation, arms: Sequence[Arm], overrides: Mapping[str, Any]) -> list[RunConfig]:
    shared = (to_dict(preset(ablation.base)), ablation.settings, overrides)
    configs = [_config(arm, shared) for arm in arms]
    if ablation.match == "active_flops":
        configs = match_flops({arm.name: config for arm, config in zip(arms, configs, strict=True)})
    return configs


def _unlike(ablation: Ablation, arms: Sequence[Arm], configs: list[RunConfig]) -> None:
    """Check that each config can be trained and is another one than the arms' before it."""
    owners: dict[str, str] = {}
    for arm, config in zip(arms, configs, strict=True):
        # Levels such as 1 and 1.0 are told apart by nothing but the config that they make.
        twin = owners.setdefault(config_hash(config, with_seed=False), arm.name)
        if twin != arm.name:
            raise UserError(f"factors: the arms {twin} and {arm.name} have the same config; drop one of the levels")
        _check_trainable(ablation, arm, config)


def _varied(arms: Sequence[Arm]) -> list[Factor]:
    """What differs between a ladder's points, and the values that it takes."""
    return [Factor(key, tuple(dict.fromkeys(arm.settings[key] for arm in arms))) for key in arms[0].settings]


def _config(arm: Arm, shared: Sequence[Mapping[str, Any]]) -> RunConfig:
    try:
        return build(*shared, arm.settings)
    except UserError as error:
        try:
            build(*shared)
        except UserError as without:
            if str(without) == str(error):  # not the levels' fault
                raise error from None
        raise UserError(f"arm {arm.name}: {error}") from None


def _check_trainable(ablation: Ablation, arm: Arm, config: RunConfig) -> None:
    try:
        check_run(config, ablation.resources.devices)
    except UserError as error:
        varied = any(key in str(error) for key in arm.settings)
        raise UserError(f"arm {arm.name}: {error}" if varied else str(error)) from None
    if "val/excess_nelbo" in (ablation.metric, *ablation.secondary) and load_corpus(config.data).entropy is None:
        raise UserError(
            f"metric val/excess_nelbo needs a source of known entropy, which data.corpus={config.data.corpus} is not; "
            "use data.corpus=markov, or the metric val/nelbo"
        )


def _described(edition: Ablation, arms: Sequence[Arm], configs: Sequence[RunConfig]) -> list[dict[str, Any]]:
    """All arms as a design lists them, each with what makes it hard to compare with the control."""
    found = [describe_arm(arm, config) for arm, config in zip(arms, configs, strict=True)]
    control, base = found[0], configs[0].model
    for entry, config in zip(found[1:], configs[1:], strict=True):
        share = entry["flops_per_token"] / control["flops_per_token"] - 1
        if edition.match == "active_flops" and abs(share) > 1e-4:
            entry["notes"].append(f"{share:+.2%} FLOPs per token: no expert width comes nearer to the control's")
        elif edition.match is None and not edition.ladder and not edition.recipes and abs(share) > UNEQUAL:
            entry["notes"].append(
                f"{share:+.0%} FLOPs per token beside the control's: not a comparison at equal compute"
            )
        kinds = entry["likelihood"], control["likelihood"]
        if reason := incomparable(*kinds):
            entry["notes"].append(reason)
        elif kinds[0]["kind"] != kinds[1]["kind"]:
            entry["notes"].append(ACROSS)
        model = config.model
        if (
            "load/max_vio" in (edition.metric, *edition.secondary)
            and not edition.ladder
            and (model.experts * base.top_k != base.experts * model.top_k)
        ):
            entry["notes"].append("its MaxVio has another upper bound (experts / top-k - 1) than the control's")
    return found


def describe_arm(arm: Arm, config: RunConfig) -> dict[str, Any]:
    """An arm as a design lists it."""
    return {
        "name": arm.name,
        "label": arm.label,
        "settings": dict(arm.settings),
        "hash": config_hash(config, with_seed=False),
        "parameters": asdict(count(config.model)),
        "flops_per_token": flops_per_token(config),
        "likelihood": likelihood(config).to_dict(),
        "notes": _notes(config),
    }


def _notes(config: RunConfig) -> list[str]:
    """What a reader of a comparison must know of an arm."""
    model, notes = config.model, []
    if model.num_experts and model.router.kind in SEES_OTHERS:
        notes.append("a token's experts depend on the other tokens of its sequence")
    if model.num_experts and model.router.kind == "soft":
        notes.append(f"every token meets all {model.experts} experts")
    return notes


def _check_first(ablation: Ablation, firsts: Mapping[str, RunConfig]) -> None:
    for name, config in firsts.items():
        try:
            check_run(config, ablation.resources.devices)
        except UserError as error:
            raise UserError(f"arm {name}, first stage: {error}") from None


def _of_stages(each: Prepared, control: Prepared) -> list[str]:
    """How a recipe's training is spent, where that is otherwise than the control's."""
    steps, first = each.config.trainer.steps, each.first
    if first is not None:
        return [
            f"{first.trainer.steps} steps of a first stage ({first.objective.kind}), then {steps}, at equal training FLOPs"
        ]
    if steps != control.config.trainer.steps:
        return [f"{steps} steps (the control: {control.config.trainer.steps}) at equal training FLOPs"]
    return []


def planned_runs(
    arms: Iterable[tuple[Arm, RunConfig, str, RunConfig | None]], seeds: Sequence[int]
) -> tuple[PlannedRun, ...]:
    """Every arm's run under every seed, block by block. arms: each with its config, its data's fingerprint, and its first
    stage or None."""
    by_arm = [_runs(*arm, seeds) for arm in arms]
    return tuple(run for block in zip(*by_arm, strict=True) for run in block)


def _runs(arm: Arm, config: RunConfig, data: str, first: RunConfig | None, seeds: Sequence[int]) -> list[PlannedRun]:
    content = to_dict(config)  # once: of a thousand seeds it would take seconds
    arm_hash = content_hash(content, with_seed=False)
    first_data = "" if first is None else fingerprint(first)
    return [
        PlannedRun(
            arm=arm.name,
            settings=dict(arm.settings),
            config=replace(config, seed=seed),
            run_hash=content_hash(content | {"seed": seed}),
            arm_hash=arm_hash,
            fingerprint=data,
            first=None if first is None else replace(first, seed=seed),
            first_fingerprint=first_data,
        )
        for seed in seeds
    ]
