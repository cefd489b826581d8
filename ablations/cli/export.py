"""`ablate export`: the winning arm as a config with its evidence, at any scale and for other trainers; or its weights."""

import argparse
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.text import Text

from ablations.cli import studies
from ablations.cli.confirm import confirmation_of, verdict
from ablations.cli.import_hf import export_run
from ablations.cli.recorded import drift_note, load_study
from ablations.cli.terminal import console
from analysis.study import Study
from analysis.verdicts.answer import Judgement
from analysis.verdicts.arms import UNCONFIRMED
from analysis.verdicts.judge import judge
from core.capacity.clusters import Cluster
from core.capacity.planning import plan
from core.config.loading import build, flatten, load, parse_overrides
from core.config.presets import resolve
from core.config.run import to_dict
from core.errors import UserError
from core.records.designs import Design
from core.records.run_record import RunRecord
from core.runtime.units import parse
from sweeps.export import transfer
from sweeps.export.arm import CONFIG, arm_of, basis_of, export, first_run
from sweeps.export.full_scale import UNDECIDED, FullScale, predicted, write
from sweeps.export.trainer_format import EXPORT_FORMATS, Job, write_format
from sweeps.launch import slurm_request

FULL_SCALE = ("cluster", "tokens", "rule")
CHECKPOINT_EVERY = 1000  # steps, where neither config nor validation says how often


def run_export(arguments: argparse.Namespace) -> int:
    """The winning arm as a config, with its evidence."""
    check_options(arguments)
    as_hf = arguments.format == "hf"
    if as_hf and (Path(arguments.name) / "config.yaml").is_file():
        console().print(Text(export_run(Path(arguments.name), arguments.to or Path(arguments.name) / "hf")))
        return 0
    if arguments.format in EXPORT_FORMATS and (Path(arguments.name) / "config.yaml").is_file():
        target = arguments.to or Path(arguments.name) / arguments.format
        _to_trainer(arguments.format, Job(load(Path(arguments.name) / "config.yaml")), target)
        return 0
    study, folder = load_study(arguments)
    judgement = judge(study)
    arm = _arm(arguments, study, judgement)
    runs = [record for record in study.records_of(arm) if record.status == "complete"]
    if not runs:
        raise UserError(f"--arm '{arm}' has no complete run to export: ablate run {arguments.name}")
    if as_hf:
        return _as_hf(arguments, study, arm, folder)
    evidence = _evidence(arguments, study, judgement, arm)
    out = console()
    out.print(f"{arm}: {evidence['chosen']}")
    if arguments.target:
        ablation = studies.resolve(arguments.name)[1].sized(study.design.size)
        target = arguments.to or folder / "export" / Path(arguments.target).stem
        by_hand, matched = arm != judgement.winner, ablation.match is not None
        return at_full_scale(arguments, study.design, arm, runs, evidence, target, by_hand=by_hand, matched=matched)
    if arguments.format in EXPORT_FORMATS:
        job, target = Job(build(first_run(arm, runs, study.design).config)), folder / "export" / arguments.format
        _to_trainer(arguments.format, job, arguments.to or target)
        export(study.design, arm, runs, evidence, arguments.to or target)
        return 0
    target = arguments.to or folder / "export"
    export(study.design, arm, runs, evidence, target)
    out.unwrapped(f"config: {target / CONFIG}")
    out.unwrapped(f"train it: ablate train {shlex.quote(str(target / CONFIG))}")
    return 0


def check_options(arguments: argparse.Namespace) -> None:
    """Refuse options that mean nothing together."""
    if arguments.target and arguments.format == "hf":
        raise UserError("--target exports a config to train from, --format hf trained weights: give one of them")
    if arguments.target and not arguments.cluster:
        raise UserError("--target needs --cluster, which the layout is planned for, such as --cluster 64xH100-80G")
    given = [name for name in FULL_SCALE if getattr(arguments, name) is not None]
    if not arguments.target and (given or arguments.settings):
        said = f"--{given[0]}" if given else arguments.settings[0]
        raise UserError(f"{said} is of a full-scale export: add --target, such as --target llada_moe_7b_a1b")
    transfer.rule_of(arguments.rule or "compute")


def _arm(arguments: argparse.Namespace, study: Study, judgement: Judgement) -> str:
    arm = arguments.arm or judgement.winner
    if arm is None:
        raise UserError(f"{arguments.name}: no arm can be exported yet: {judgement.winner_reason}")
    if arguments.arm is None:
        return arm
    labels = {name: [study.labels[name]] for name in study.arms}
    return named_arm(arm, labels, f"is not an arm of {arguments.name}; the arms are")


def named_arm(given: str, arms: Mapping[str, Sequence[str]], otherwise: str) -> str:
    """The arm that is called so, by its name or a label of it as tables print it. Raises UserError."""
    wanted = given.strip().strip("“”").removesuffix(" (control)")
    found = [name for name, labels in arms.items() if wanted in (name, *labels)]
    if len(found) != 1:
        raise UserError(f"--arm '{given}' {otherwise} {', '.join(arms)}")
    return found[0]


def _as_hf(arguments: argparse.Namespace, study: Study, arm: str, folder: Path) -> int:
    run = first_run(arm, study.records_of(arm), study.design)
    place = next((folder / arm).glob(f"seed-{run.seed}-{run.run_hash}-*"))
    line = export_run(place, arguments.to or folder / "export" / "hf")
    console().unwrapped(Text(f"{arm}, seed {run.seed}: {line}"))
    return 0


def _evidence(arguments: argparse.Namespace, study: Study, judgement: Judgement, arm: str) -> dict[str, Any]:
    """Evidence for an arm: effects, how it was chosen, and its confirmation on fresh seeds.

    Raises UserError for a winner that isn't confirmed, unless --force is given.
    """
    found: dict[str, Any] = judgement.to_dict()
    found["notes"] = [*found["notes"], *drift_note(arguments)]
    if arm != judgement.winner:
        return {"chosen": "by hand (--arm), not by the verdict", "confirmed": False} | found
    if arm == study.design.control:
        return {"chosen": f"by the verdict: {judgement.winner_reason}", "confirmed": None} | found
    confirming = confirmation_of(arguments, study, arm)
    said = verdict(confirming[1], arm) if confirming else f"{arm} was not trained on fresh seeds"
    if confirming and confirming[1].winner == arm:
        chosen, confirmed = f"by the verdict, and {said}", True
        found["winner_reason"] = found["winner_reason"].replace(UNCONFIRMED, "confirmed on fresh seeds")
    elif arguments.force:
        chosen, confirmed = f"UNCONFIRMED (--force): by the verdict, but {said}", False
    else:
        hint = "" if confirming else f"; {studies.command('confirm', arguments, study.design.size)} does that"
        raise UserError(f"{arguments.name}: the best of several looks better than it is, and {said}{hint} (--force exports "
                        "it, marked as unconfirmed)")  # fmt: skip
    return {"chosen": chosen, "confirmed": confirmed, "confirmation": confirming and confirming[1].to_dict()} | found


def at_full_scale(
    arguments: argparse.Namespace,
    design: Design,
    arm: str,
    runs: Sequence[RunRecord],
    evidence: Mapping[str, Any],
    folder: Path,
    *,
    by_hand: bool,
    matched: bool,
) -> int:
    """Carry what was decided to --target, lay that out on --cluster, and write the folder that trains it.

    by_hand: the user chose the arm, and all its levels are carried; else those in which a winner differs from the control:
    none where no arm is better. matched: arms had equal FLOPs per token, so that the target is to have its own too. Raises
    UserError for what can't be carried, and where no layout fits.
    """
    cluster, given = Cluster.parse(arguments.cluster), parse_overrides(arguments.settings)
    proxy, own = build(first_run(arm, runs, design).config), resolve(arguments.target, {})
    target, why = build(to_dict(own), given), dict.fromkeys(dict(flatten(given)), "set on the command line")
    if arguments.tokens:
        target = transfer.with_tokens(target, parse(arguments.tokens))
        why["trainer.steps"] = f"--tokens {arguments.tokens}"
    settings = arm_of(design, arm).settings if by_hand else transfer.decided(design, arm, proxy)
    settings = {key: value for key, value in settings.items() if key not in why}
    rule = transfer.rule_of(arguments.rule or "compute")
    config, carried = transfer.carry(settings, proxy, target, rule, match=matched, devices=cluster.devices)
    if by_hand:
        carried = [replace(entry, how=f"{entry.how}; of an arm that was chosen by hand") for entry in carried]
    if not config.trainer.checkpoint_every:
        every = config.trainer.validate_every or CHECKPOINT_EVERY
        config = replace(config, trainer=replace(config.trainer, checkpoint_every=every))
        why["trainer.checkpoint_every"] = "so that a node that fails doesn't cost the run"
    if config.trainer.steps != target.trainer.steps:
        why["trainer.steps"] = "as many tokens as before, with another batch or other lengths"
    planned = plan(config, cluster)
    name = Path(arguments.target).stem
    scale = FullScale(name, planned.config, own, proxy, carried, rule, cluster, planned, why)
    job = Job(planned.config, cluster.devices)
    if arguments.format in EXPORT_FORMATS:
        EXPORT_FORMATS[arguments.format].lost(job)  # refuses, before anything is written
    lacks = write(scale, basis_of(design, arm, runs), evidence, folder, slurm_request.defaults())
    _tell(scale, lacks, folder)
    if arguments.format in EXPORT_FORMATS:
        _to_trainer(arguments.format, job, folder)
    return 0


def _to_trainer(name: str, job: Job, folder: Path) -> None:
    """Write a job in another trainer's format, and print what isn't expressed."""
    lost, kind, out = write_format(name, job, folder), EXPORT_FORMATS[name], console()
    for line in lost:
        out.unwrapped(Text(f"not expressed: {line}"))
    out.unwrapped(Text(f"{kind.trainer} ({kind.version}), not run here: {folder}"))
    out.unwrapped(Text(f"start it: {kind.start}"))


def _tell(scale: FullScale, lacks: Sequence[str], folder: Path) -> None:
    out = console()
    if not scale.carried:
        out.unwrapped(UNDECIDED)
    for each in scale.carried:
        out.unwrapped(f"{each.key}: {each.proxy} on the proxy, {each.target} here: {each.how}")
    out.unwrapped(scale.sizes())
    out.unwrapped(f"{scale.cluster}: {predicted(scale)}")
    for line in lacks:
        out.unwrapped(f"note: {line}")
    out.unwrapped(f"config, script, evidence and card: {folder}")
    path = shlex.quote(str(folder))
    out.unwrapped(f"check it: ablate train {path} --cluster {scale.cluster} --dry-run")
