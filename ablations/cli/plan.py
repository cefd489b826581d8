"""`ablate plan`: what a design costs and which effect it can detect, before anything is trained."""

import argparse
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from ablations.cli import studies
from ablations.cli.launching import resolve_workers
from ablations.cli.terminal import show
from analysis.scaling.ladder import unfittable
from analysis.statistics.power import reach_of
from analysis.study import Study, uncollected
from analysis.verdicts.judge import judge
from core.capacity.room import check_room
from core.config.run import RunConfig, config_hash
from core.data.corpora import describe as describe_data
from core.errors import UserError
from core.records.designs import Design
from core.runtime.terminal import Terminal, line
from core.runtime.terminal_table import Labelled, labelled
from core.runtime.units import counted, duration, short, significant
from sweeps.launch.machine import default_workers, share_of_cores
from sweeps.runs.folders import pending
from sweeps.studies.plan import Plan


def run_plan(arguments: argparse.Namespace) -> int:
    """Print arms, parameters, FLOPs, time, and the smallest effect that the design can detect."""
    with uncollected() if arguments.no_calibration else nullcontext():
        content = describe_plan(arguments)
    return show_plan(content, arguments, print_plan)


def show_plan(
    content: dict[str, Any], arguments: argparse.Namespace, print_content: Callable[[dict[str, Any], Terminal], None]
) -> int:
    """Print a plan for people or as JSON. Raises UserError, after that, for one that can't reach significance."""
    show(content, arguments, print_content)
    if content["refused"] and not arguments.exploratory:
        raise UserError(f"{content['refused']} (--exploratory plans it anyway)")
    return 0


def make_plan(arguments: argparse.Namespace) -> Plan:
    """The plan of NAME. Raises UserError for a study whose designs have no arms."""
    studies.declared_with_arms(arguments.name)
    planned: Plan = studies.make_plan(arguments)
    return planned


def power_of(design: Design) -> dict[str, Any]:
    """The smallest effect, in standard deviations of paired differences, that the design detects; or why it can't: of a
    ladder, why no law could be fitted to it."""
    if design.ladder is not None:
        reason = unfittable(design)
        return {"detectable_effect_sd": None, "comparisons": 0, "refused": f"ladder: {reason}" if reason else None}
    comparisons, reach = len(design.arms) - 1, reach_of(design)
    refused = (
        f"seeds: {len(design.seeds)} cannot reach significance for {counted(comparisons, 'comparison')} at "
        f"alpha={design.alpha:g}: use at least {reach.seeds_needed} (--seeds {reach.seeds_needed})"
    )
    return {
        "detectable_effect_sd": reach.detectable_effect,
        "comparisons": comparisons,
        "refused": None if reach.ok else refused,
    }


def describe_plan(arguments: argparse.Namespace) -> dict[str, Any]:
    """Everything that `ablate plan` shows."""
    planned = make_plan(arguments)
    design = planned.design
    folder = arguments.out / planned.study_name
    todo = pending(planned, arguments.out)
    content: dict[str, Any] = {
        "ablation": planned.name,
        "size": planned.size,
        "question": design.question,
        "control": design.control,
        "metric": design.metric,
        "margin": design.margin,
        "arms": design.to_json()["arms"],
        "seeds": design.seeds,
        "runs": {"total": len(planned.runs), "missing": len(todo)},
        "data_fingerprint": design.data_fingerprint,
        "data": describe_data(run.config.data for run in planned.runs),
        **power_of(design),
    }
    content["noise_sd"] = noise = _known_noise(folder, design)
    effect = content["detectable_effect_sd"]
    content["detectable_effect"] = effect * noise if effect is not None and noise is not None else None
    if not arguments.no_calibration and not content["refused"]:
        check_calibration(config for run in planned.runs for config in (run.config, run.first) if config)
        from sweeps.runs.cost import calibrate, total_s  # torch and what trains with it

        workers = resolve_workers(arguments.workers, planned) or default_workers(planned.devices)
        content["seconds_per_run"] = seconds = calibrate(planned, threads=max(1, len(share_of_cores(0, 1)) // workers))
        content["estimated_seconds"] = total_s(seconds, todo, workers)
        content["workers"] = workers
    return content


def check_calibration(configs: Iterable[RunConfig]) -> None:
    """Refuse, before anything is allocated, to time steps that take much of the memory. Raises UserError."""
    for config in {config_hash(config, with_seed=False): config for config in configs}.values():
        check_room(config, 1, "--no-calibration plans without")


def _known_noise(folder: Path, design: Design) -> float | None:
    """Standard deviation of paired differences seen in the records of this very design so far: the largest over arms."""
    study = Study.load(folder, design) if folder.is_dir() else None
    return judge(study, brief=True).found.get("noise_sd") if study is not None else None


def print_plan(content: dict[str, Any], out: Terminal) -> None:
    """The plan for people."""
    out.print(line(content["ablation"], "bold") + line(f" {content['size']}", "dim"))
    out.print(content["question"])
    out.print(_points(content) if "point" in content["arms"][0] else _arms(content))
    for arm in content["arms"]:
        for note in arm["notes"]:
            out.print(f"note: {arm['label']}: {note}")
    for each in content["data"]:
        out.unwrapped(each)
    runs = content["runs"]
    if points := [arm["point"] for arm in content["arms"] if "point" in arm]:
        epochs = max(point["epochs"] for point in points)
        spent = sum(point["flops"] for point in points) * len(content["seeds"])
        out.print(f"{spent:.3g} FLOPs in all; up to {short(epochs)} epochs of the corpus")
    out.print(
        f"{counted(len(content['arms']), 'arm')} x {counted(len(content['seeds']), 'seed')} = "
        f"{counted(runs['total'], 'run')}, {runs['missing']} to do"
    )
    if content.get("estimated_seconds") is not None:
        out.print(
            f"time: about {duration(content['estimated_seconds'])} with {counted(content['workers'], 'worker')} "
            f"on this machine"
        )
    if content["detectable_effect_sd"] is not None:
        _print_effect(content, out)


def _arms(content: dict[str, Any]) -> Labelled:
    table = labelled("arm", "parameters", "active", "FLOPs/token")
    for arm in content["arms"]:
        control = " (control)" if arm["name"] == content["control"] else ""
        total, active = arm["parameters"]["total"], arm["parameters"]["active"]
        table.add(f"{arm['label']}{control}", f"{total:,}", f"{active:,}", short(arm["flops_per_token"]))
    return table


def _points(content: dict[str, Any]) -> Labelled:
    """A ladder's points: N is what a token meets, D the tokens, and what they were solved for."""
    names = ("parameters", "N, active", "D, tokens", "D/N", "FLOPs", "design")
    table = labelled("family", *names, folded=("design",))
    for arm in content["arms"]:
        point, parameters = arm["point"], arm["parameters"]
        solved = (
            f"IsoFLOP {point['budget']:.3g}" if point["budget"] else f"{point['tokens_per_parameter']:g} tokens each"
        )
        cells = (short(parameters["total"]), short(parameters["active"]), short(point["tokens"]))
        ratio = f"{point['tokens'] / parameters['active']:.3g}"
        table.add(point["family"], *cells, ratio, f"{point['flops']:.3g}", solved)
    return table


def _print_effect(content: dict[str, Any], out: Terminal) -> None:
    said = (
        f"detects {content['detectable_effect_sd']:.2f} sd of paired differences (Holm over {content['comparisons']})"
    )
    if (effect := content["detectable_effect"]) is not None:
        said += f" = {significant(effect, 2)} of {content['metric']}, by the noise recorded so far"
    out.print(said)
