"""`make bench`: model, platform and searches beside their peers, as ratios measured in turns. Writes bench.json, bench.md."""

import argparse
import json
import os
import platform
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from core.capacity.clusters import device_of_record
from core.config.model import ModelConfig
from sweeps.launch.machine import share_of_cores
from sweeps.runs.packing import measure_packings
from tests.benchmarks import adaptive, commands, dashboard, engine, layer, ledger, search, stack, step, sweep, telemetry
from tests.benchmarks.timing import cell, ratio

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
# Dense peak in bf16, for model FLOPs utilisation (vendor's data sheets).
PEAK_FLOPS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--threads", type=int, help="CPU threads (default: all)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="two cells of each table")
    parser.add_argument(
        "--parts", default="layer,step,packing,engine,telemetry,sweep,ledger,search,adaptive,dashboard,commands"
    )
    parser.add_argument(
        "--layers", type=int, default=4, help="of the part `stack`, which wants a GPU (default: %(default)s)"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/bench"))
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    wanted = options.parts.split(",")
    if not set(wanted) <= {"search", "adaptive", "dashboard", "commands"}:
        _single_process_group()
    rows: dict[str, Any] = {}
    if "layer" in wanted:
        rows["layer"] = layers(options)
    if "step" in wanted:
        rows["step"] = steps(options)
    if "packing" in wanted and options.device == "cpu":
        rows["packing"] = packings()
    if "engine" in wanted and options.device == "cpu":
        rows["engine"] = engines(options.rounds)
    if "telemetry" in wanted and options.device == "cpu":
        rows["telemetry"] = [
            {"preset": name, "share": ratio([r["telemetry"] for r in runs], [r["total"] for r in runs])}
            for name, runs in telemetry.measure(max(2, options.rounds // 2)).items()
        ]
    if "sweep" in wanted and options.device == "cpu":
        rows["sweep"], rows["start"] = sweeps(max(2, options.rounds // 2))
    if "ledger" in wanted:
        rows["ledger"] = [{"storage": name} | row for name, row in ledger.measure().items()]
    if "search" in wanted and options.device == "cpu":
        rows["search"] = search.measure(10 if options.quick else search.REPEATS)
    if "adaptive" in wanted and options.device == "cpu":
        rows["adaptive"] = adaptive.measure(20 if options.quick else adaptive.REPEATS)
    if "stack" in wanted:
        if options.device != "cuda":
            parser.error("the part `stack` wants --device cuda")
        device = device_of_record(f"cuda: {torch.cuda.get_device_name()}")
        if device is None:
            parser.error(f"the planner doesn't know {torch.cuda.get_device_name()}")
        rows["stack"] = stack.measure(options.layers, options.rounds, "cuda", device)
    if "dashboard" in wanted:
        rows["dashboard"] = dashboard.measure()
    if "commands" in wanted:
        rows["commands"] = commands.measure()
    text = _markdown(rows, options)
    print(text)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "bench.json").write_text(json.dumps(rows, indent=2, default=vars) + "\n")
    (options.out / "bench.md").write_text(text)


def engines(rounds: int) -> list[dict[str, Any]]:
    """Step times of the engine and of expert parallelism as ratios, with the bytes that leave a rank in all-to-alls."""
    found = engine.measure(max(3, rounds // 2))
    return [
        {
            "contest": f"{name} / {other}",
            "ratio": ratio(found[name]["seconds"], found[other]["seconds"]),
            "seconds": statistics.median(found[name]["seconds"]),
            "megabytes": found[name]["bytes"][-1] / 1e6,
        }
        for name, other in engine.RATIOS
    ]


def sweeps(rounds: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Runs per hour of the same sweep by contestant, and what a warm worker spends beside training, by W&B's mode."""
    seconds = sweep.measure(rounds, seeds=4)
    contest = [
        {
            "contestant": name,
            "runs_per_hour": 3600 * 2 * 4 / statistics.median(values),
            "over_ours": ratio(values, seconds["ours"]),
        }
        for name, values in seconds.items()
    ]
    modes = os.environ.get("WANDB_MODE")
    starts = []
    for mode in ("offline", "disabled"):
        os.environ["WANDB_MODE"] = mode
        starts.append({"wandb": mode} | sweep.warm_starts(seeds=6))
    os.environ.pop("WANDB_MODE") if modes is None else os.environ.update(WANDB_MODE=modes)
    return contest, starts


def layers(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Every cell of the layer table: medians and quartiles of seconds over the floor's, and over ours."""
    shapes = [(shape, layer.HIDDEN) for shape in layer.CELLS]
    shapes = [shapes[0], shapes[-1]] if options.quick else shapes
    if options.device == "cuda":
        shapes.append((layer.RELEASED, 2048))
    rows = []
    for shape, hidden in shapes:
        for name, dtype in DTYPES.items():
            seconds, missing = layer.measure(shape, dtype, rounds=options.rounds, device=options.device, hidden=hidden)
            row = {
                "shape": f"E={shape[0]} K={shape[1]} W={shape[2]} D={hidden} {name}",
                "floor_ms": 1e3 * statistics.median(seconds["floor"]),
                "ours_over_floor": ratio(seconds["ours"], seconds["floor"]),
                "peers_over_ours": {
                    peer: ratio(values, seconds["ours"])
                    for peer, values in seconds.items()
                    if peer not in ("floor", "ours")
                },
                "missing": missing,
            }
            peak = _peak(options.device)
            if peak and name == "bf16":
                config = ModelConfig(hidden_size=hidden, num_experts=shape[0], top_k=shape[1], expert_width=shape[2])
                row["mfu"] = layer.flops(config, layer.TOKENS) / statistics.median(seconds["ours"]) / peak
            rows.append(row)
            print(row["shape"], f"ours / floor {cell(row['ours_over_floor'])}", *missing, flush=True)
    return rows


def steps(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Every cell of the step table: our tokens per second, and the peers' seconds over ours."""
    cells = [step.CELLS[0], step.CELLS[-1]] if options.quick else step.CELLS
    rows = []
    for shape in cells:
        for precision in DTYPES:
            seconds = step.measure(shape, precision, rounds=options.rounds, device=options.device)
            rows.append(
                {
                    "shape": f"V={shape[0]} E={shape[1]} K={shape[2]} W={shape[3]} {precision}",
                    "tokens_per_second": step.BATCH * step.LENGTH / statistics.median(seconds["ours"]),
                    "ours_over_floor": ratio(seconds["ours"], seconds["floor"]),
                    # How far ahead of it the floor is: nobody can be further.
                    "eager_over_floor": ratio(seconds["olmoe eager"], seconds["floor"]),
                    "peers_over_ours": {
                        name: ratio(value, seconds["ours"])
                        for name, value in seconds.items()
                        if name.startswith("olmoe")
                    },
                }
            )
            print(rows[-1]["shape"], {n: cell(v) for n, v in rows[-1]["peers_over_ours"].items()}, flush=True)
    return rows


def packings() -> list[dict[str, Any]]:
    """Steps per second of one worker on all cores and of one worker a core, on the first cell of the step table."""
    config = step.config_of(*step.CELLS[0], "fp32")
    found = sorted(measure_packings(config, share_of_cores(0, 1)), key=lambda packing: packing.workers)
    return [
        vars(packing) | {"over_one_worker": packing.steps_per_second / found[0].steps_per_second} for packing in found
    ]


def _single_process_group() -> None:
    """DeepSpeed's layers want one, and would build an extension for it."""
    import deepspeed.ops

    deepspeed.ops.__compatible_ops__ = {}
    os.environ |= {
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "29511",
    }
    deepspeed.init_distributed("gloo", verbose=False)


def _peak(device: str) -> float | None:
    name = torch.cuda.get_device_name() if device == "cuda" else ""
    return next((peak for part, peak in PEAK_FLOPS.items() if part in name), None)


def _markdown(rows: dict[str, Any], options: argparse.Namespace) -> str:
    where = torch.cuda.get_device_name() if options.device == "cuda" else f"{torch.get_num_threads()} CPU threads"
    lines = [
        f"{where}, {platform.machine()}, torch {torch.__version__}, {time.strftime('%Y-%m-%d')}; median [quartiles]",
        "",
    ]
    for part in ("layer", "step"):
        if part not in rows:
            continue
        names = sorted({name for row in rows[part] for name in row["peers_over_ours"]})
        own = "ours / floor" if part == "layer" else "our tokens/s | ours / floor | olmoe eager / floor"
        lines += [
            f"| {part} | {own} | {' | '.join(f'{name} / ours' for name in names)} |",
            "|" + "---|" * (len(names) + 1 + len(own.split("|"))),
        ]
        for row in rows[part]:
            first = cell(row["ours_over_floor"])
            if part == "step":
                first = f"{row['tokens_per_second']:,.0f} | {first} | {cell(row['eager_over_floor'])}"
            mfu = f" (MFU {row['mfu']:.0%})" if "mfu" in row else ""
            peers = [cell(row["peers_over_ours"][name]) if name in row["peers_over_ours"] else "–" for name in names]
            lines.append(f"| {row['shape']} | {first}{mfu} | {' | '.join(peers)} |")
        lines.append("")
    for row in rows.get("packing", []):
        lines.append(
            f"{row['workers']} workers x {row['threads']} threads: {row['steps_per_second']:.2f} steps/s, "
            f"{row['over_one_worker']:.2f} of one worker on all cores"
        )
    if "engine" in rows:
        lines += ["", "| step time | ratio | seconds | all-to-all, MB a step and rank |", "|---|---|---|---|"]
        lines += [
            f"| {row['contest']} | {cell(row['ratio'])} | {row['seconds']:.2f} | {row['megabytes']:.1f} |"
            for row in rows["engine"]
        ]
    for row in rows.get("telemetry", []):
        share = tuple(100 * value for value in row["share"])
        lines.append(f"routing telemetry, {row['preset']}: {cell(share)} % of a run's time")
    if "sweep" in rows:
        lines += ["", "| sweep | runs/hour | seconds, x / ours |", "|---|---|---|"]
        lines += [
            f"| {row['contestant']} | {row['runs_per_hour']:.0f} | {cell(row['over_ours'])} |" for row in rows["sweep"]
        ]
        lines += [
            "",
            "| W&B | start, s | tell to claim, s | beside training, s | of a 60 s run |",
            "|---|---|---|---|---|",
        ]
        lines += [
            f"| {row['wandb']} | {row['start']:.2f} | {row['between']:.2f} | {row['beside']:.2f} | {row['beside'] / 60:.1%} |"
            for row in rows["start"]
        ]
    if "ledger" in rows:
        lines += [
            "",
            "| ledger | claim p50, ms | p95 | first p50 | first p95 | tell p95 |",
            "|---|---|---|---|---|---|",
        ]
        names = ("p50", "p95", "first_p50", "first_p95", "tell_p95")
        lines += [
            f"| {row['storage']} | " + " | ".join(f"{1e3 * row[name]:.0f}" for name in names) + " |"
            for row in rows["ledger"]
        ]
    if "search" in rows:
        lines += ["", *search.table(rows["search"])]
    if "adaptive" in rows:
        lines += ["", *adaptive.table(rows["adaptive"])]
    if "stack" in rows:
        lines += ["", *stack.table(rows["stack"])]
    if "dashboard" in rows:
        lines += ["", *dashboard.table(rows["dashboard"])]
    if "commands" in rows:
        lines += ["", *commands.table(rows["commands"])]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
