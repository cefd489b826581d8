"""Export of the winning arm at full scale: a folder that a cluster can train from.

<folder>/
    config.yaml      the whole config, its layout included; `ablate train` takes it
    stages.yaml      the same model through LLaDA-MoE's five stages, for corpora that are still to be named
    deepspeed.json   the same layout as DeepSpeed reads it, for other programs
    train.sbatch     the Slurm script that trains it on the cluster
    hf/config.json   the model as transformers names it, where it has a class for it
    evidence.json    what was found, what it rests on, what was carried by which rule, and what is extrapolated
    CARD.md          the same on a page
"""

import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from core.capacity.clusters import Cluster
from core.capacity.layouts import settings
from core.capacity.planning import Plan, plan
from core.config.run import RunConfig, get_field, known_keys
from core.config.run import to_yaml as config_yaml
from core.config.stages import Stage, llada_moe_stages, to_yaml
from core.data.corpora import load as load_corpus
from core.errors import UserError
from core.interchange.layouts import auxiliary_loss, config_to_hf
from core.model.flops import count
from core.records.run_record import write_atomically
from core.runtime.child_process import SOURCE_ROOT, STOPPED
from core.runtime.units import short
from core.training.deepspeed_config import engine_config
from core.training.dry_run import check_fed
from sweeps.export.arm import CARD, CONFIG, EVIDENCE, card_head, cell, found_at, settings_table
from sweeps.export.transfer import BATCH, RATE, Carried, Rule, Scale, published_optimum
from sweeps.launch.slurm import option_lines
from sweeps.launch.slurm_request import Request, clock

SCRIPT, ENGINE, HF, STAGES = "train.sbatch", "deepspeed.json", "hf/config.json", "stages.yaml"
SFT_STEPS = 10_000  # until the conversations are known
LEAD_S = 300  # before the time limit: for a checkpoint of all devices
PLAIN = Request()
UNDECIDED = "Nothing decided: the target's own values stay in every factor of the study."
STRETCHED = 1e4  # times the compute: beyond the range over which scaling fits are made

# Every rank gets Slurm's signals, as a part of the job step, and saves; then the job has itself queued again.
TEMPLATE = """\
#!/bin/bash
{options}
stopping=
trap 'stopping=1' TERM USR1
{setup}
here={folder}
export PYTHONPATH={root}"${{PYTHONPATH:+:$PYTHONPATH}}"
export MASTER_ADDR="${{MASTER_ADDR:-$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)}}"
export MASTER_PORT="$((20000 + SLURM_JOB_ID % 20000))"
if [ $# -eq 0 ]; then set -- {config}; fi  # or: {stages} --stage NAME
file="$here/$1"; shift
{python} -P -m ablations train "$file" "$@" --devices {devices} --dry-run || exit 2
srun --mpi=none --kill-on-bad-exit=1 {python} -P -m ablations train "$file" "$@" --out "$here/runs" </dev/null &
step=$!
status=0
while kill -0 "$step" 2>/dev/null; do wait "$step"; status=$?; done
if [ "$stopping" ] || [ "$status" -eq {stopped} ]; then scontrol requeue "$SLURM_JOB_ID"; fi
exit "$status"
"""


@dataclass(frozen=True)
class FullScale:
    """A target to train: its config, what of the arm it carries, by which rule, and how it lies on a cluster.

    own: the target before anything was changed. why: of settings that were neither carried nor laid out, by key.
    """

    name: str
    config: RunConfig
    own: RunConfig
    proxy: RunConfig
    carried: Sequence[Carried]
    rule: Rule
    cluster: Cluster
    plan: Plan
    why: Mapping[str, str] = field(default_factory=dict)

    @property
    def changed(self) -> list[dict[str, Any]]:
        """Every setting that isn't the target's own: key, the target's own value, the value here, and why."""
        reasons = {**self.why, **{entry.key: entry.how for entry in self.carried}}
        reasons |= dict.fromkeys((*settings(self.plan.layout), "trainer.compile"), f"laid out for {self.cluster}")
        pairs = [(key, get_field(self.own, key), get_field(self.config, key)) for key in known_keys()]
        return [{"key": key, "own": own, "here": here, "why": reasons[key]} for key, own, here in pairs if own != here]

    def sizes(self) -> str:
        """The parameters as exported, beside the target's own."""
        here, own = count(self.config.model), count(self.own.model)
        said = f"{here.total:,} parameters, {here.active:,} of them active per token"
        if here == own:
            return f"{said}, as {self.name} itself."
        return f"{said}; {self.name} itself: {own.total:,}, {own.active:,} active."

    @property
    def extrapolated(self) -> dict[str, Any]:
        """Distance of the target from what was trained, and the published fits at its compute."""
        small, large = Scale.of(self.proxy), Scale.of(self.config)
        rate, batch = published_optimum(large.flops)
        grown = {
            key: {"proxy": before, "target": after, "factor": after / before}
            for (key, before), after in zip(asdict(small).items(), asdict(large).values(), strict=True)
        }
        return grown | {"published_optimum": {"learning_rate": rate, "batch_tokens": batch}}

    def facts(self) -> dict[str, Any]:
        """All of it, JSON-ready, as evidence.json has it."""
        plan = self.plan
        tokens = Scale.of(self.config).tokens
        return {
            "target": self.name,
            "rule": {"name": self.rule.name, "source": self.rule.source},
            "parameters": {"target": asdict(count(self.own.model)), "here": asdict(count(self.config.model))},
            "carried": [asdict(entry) for entry in self.carried],
            "changed": self.changed,
            "extrapolated": self.extrapolated,
            "cluster": asdict(self.cluster),
            "layout": asdict(plan.layout),
            "predicted": {
                "tokens": tokens,
                "tokens_per_second": plan.tokens_per_second,
                "mfu": plan.mfu,
                "days": plan.days(tokens),
                "gpu_hours": plan.gpu_hours(tokens),
            },
        }


def write(
    scale: FullScale, basis: Mapping[str, Any], evidence: Mapping[str, Any], folder: Path, request: Request = PLAIN
) -> list[str]:
    """Write the folder; returns what it lacks, and why, in sentences.

    basis, evidence: as `sweeps.export.arm` has them. request: options for Slurm. Raises UserError when a
    layout can't be said to DeepSpeed.
    """
    config, devices = scale.config, scale.cluster.devices
    lacks = []
    write_atomically(folder / CONFIG, config_yaml(config))
    write_atomically(folder / ENGINE, json.dumps(engine_config(config, devices), indent=2) + "\n")
    write_atomically(folder / SCRIPT, _script(scale, folder, request))
    try:
        said = config_to_hf(config.model, load_balancing_weight=config.objective.load_balancing_weight)
        said["torch_dtype"] = "bfloat16" if config.trainer.precision == "bf16" else "float32"
        write_atomically(folder / HF, json.dumps(said, indent=2) + "\n")
    except UserError as error:
        lacks.append(f"No {HF}: {error}")
    try:
        write_atomically(folder / STAGES, to_yaml(staged(config, scale.cluster)))
    except UserError as error:
        lacks.append(f"No {STAGES}: {error}")
    try:
        check_fed(config, load_corpus(config.data))
    except UserError as error:  # the corpus may be on the cluster alone
        lacks.append(f"The dry run will refuse it: {error}")
    lacks += [line for line in (_stretched(scale),) if line]
    content = dict(basis) | {"evidence": dict(evidence), "full_scale": scale.facts()}
    write_atomically(folder / EVIDENCE, json.dumps(content, indent=2, allow_nan=False) + "\n")
    write_atomically(folder / CARD, "\n".join(_card(scale, basis, evidence, lacks)) + "\n")
    return lacks


def staged(config: RunConfig, cluster: Cluster) -> tuple[Stage, ...]:
    """The config's model through LLaDA-MoE's five stages, each laid out on the cluster.

    The first stage has the config's corpus, unless that is the default's; the others have placeholders, which are refused
    before anything trains. Raises UserError where a stage can't be trained so, such as one that masks nothing.
    """
    if not config.objective.traits.masks_all:
        raise UserError(f"the stages are of masked diffusion, and objective.kind is {config.objective.kind}")
    corpora = {} if config.data.corpus == "stdlib" else {"pretrain-1": config.data.corpus}
    layouts = {
        stage.name: settings(plan(stage.config, cluster).layout)
        for stage in llada_moe_stages(corpora, sft_steps=SFT_STEPS, base=config)
    }
    return llada_moe_stages(corpora, sft_steps=SFT_STEPS, base=config, settings=layouts)


def _script(scale: FullScale, folder: Path, request: Request) -> str:
    count, local = scale.cluster.devices, scale.cluster.on_node
    options: dict[str, str | None] = {
        "job-name": f"train-{scale.name}",
        "nodes": str(scale.cluster.nodes),
        "ntasks-per-node": str(local),
        **({} if scale.cluster.device.name == "cpu" else {"gpus-per-node": str(local)}),
        "requeue": "",
        "open-mode": "append",
        "signal": f"USR1@{LEAD_S}",
        "output": str(folder.absolute()).replace("%", "%%") + "/log-%j.txt",
        "partition": request.partition,
        "account": request.account,
        "qos": request.qos,
        "time": clock(request.time) if request.time else None,
        "cpus-per-task": str(request.cpus_per_run) if request.cpus_per_run else None,
        **{key: value for key, value in request.sbatch.items() if key not in request.of_gpus},  # the cluster's count
    }
    return TEMPLATE.format(
        options=option_lines(options),
        setup=request.setup_lines(),
        folder=shlex.quote(str(folder.absolute())),
        root=shlex.quote(str(SOURCE_ROOT)),
        python=request.wrapped(shlex.quote(sys.executable)),
        config=CONFIG,
        stages=STAGES,
        devices=count,
        stopped=STOPPED,
    )


def predicted(scale: FullScale) -> str:
    """Layout of the target on the cluster and its cost, in two sentences."""
    layout, plan, tokens = scale.plan.layout, scale.plan, Scale.of(scale.config).tokens
    return (
        f"ZeRO-{layout.stage}, expert parallel over {layout.expert_parallel}, {layout.micro_batch} sequences a device and "
        f"micro-batch, {layout.accumulate} micro-batches a step, activation checkpointing "
        f"{'on' if layout.activation_checkpointing else 'off'}, offload {layout.offload}; {plan.memory.total / 2**30:.1f} "
        f"GiB a device. Predicted, not measured: {short(plan.tokens_per_second)} tokens/s, MFU {plan.mfu:.0%}, "
        f"{plan.days(tokens):.3g} days and {short(plan.gpu_hours(tokens))} GPU-hours to {short(tokens)} tokens."
    )


def _stretched(scale: FullScale) -> str:
    """Note on a learning rate or batch that a rule moved by orders of magnitude; else empty."""
    grown = scale.extrapolated
    factor, published = grown["flops"]["factor"], grown["published_optimum"]
    if scale.rule.name == "none" or factor < STRETCHED or not any(c.key in (RATE, BATCH) for c in scale.carried):
        return ""
    return (
        f"The rule '{scale.rule.name}' is stretched over {factor:.1e} times the compute; the published fits themselves give "
        f"a learning rate of {published['learning_rate']:.2g} and a batch of {short(published['batch_tokens'])} tokens at "
        "the target's compute: confirm between the scales before spending it."
    )


def _auxiliary_loss(config: RunConfig) -> str:
    """Note on the loss that the exported class computes itself."""
    try:
        return auxiliary_loss(config.model, config.objective.load_balancing_weight)
    except UserError:  # no class can say the model, as the card says elsewhere
        return ""


def _card(scale: FullScale, basis: Mapping[str, Any], evidence: Mapping[str, Any], lacks: Sequence[str]) -> list[str]:
    grown = scale.extrapolated
    carried = [f"| `{c.key}` | `{c.proxy}` | `{c.target}` | {cell(c.how)} |" for c in scale.carried]
    changed = [f"| `{c['key']}` | `{c['own']}` | `{c['here']}` | {cell(c['why'])} |" for c in scale.changed]
    if carried:
        carried = [
            "Carried from the proxy:",
            "",
            "| setting | proxy | here | how |",
            "| --- | --- | --- | --- |",
            *carried,
        ]
    return [
        *card_head(basis, evidence),
        "## On the proxy",
        "",
        *settings_table(basis["arm"]),
        "",
        found_at(basis),
        "",
        f"## On {scale.name}",
        "",
        scale.sizes(),
        "",
        *(carried or [UNDECIDED]),
        "",
        "Changed from the target's own:",
        "",
        "| setting | the target's own | here | why |",
        "| --- | --- | --- | --- |",
        *changed,
        "",
        "All other settings are the target's own.",
        "",
        f"Extrapolated: {short(grown['active']['proxy'])} to {short(grown['active']['target'])} active parameters, "
        f"{short(grown['tokens']['proxy'])} to {short(grown['tokens']['target'])} tokens, {grown['flops']['factor']:.2g} "
        "times the compute. Nothing between was trained for this card: the effect was measured on the proxy alone.",
        "",
        f"## On {scale.cluster}",
        "",
        predicted(scale),
        "",
        *[f"- {line}" for line in lacks],
        *([""] if lacks else []),
        *([f"In `{HF}` {said}", ""] if (said := _auxiliary_loss(scale.config)) else []),
        f"Check it in seconds: `ablate train {CONFIG} --cluster {scale.cluster} --dry-run`; train it: `sbatch {SCRIPT}`, "
        f"or in stages `sbatch {SCRIPT} {STAGES} --stage pretrain-1`, once their corpora are named in `{STAGES}`. "
        f"`{EVIDENCE}` has every number and the hash of each record; the proxies were trained by `{basis['command']}`.",
    ]
