"""Options that are many, by command."""

import argparse
import math
import re
from collections.abc import Sequence
from pathlib import Path

from core.config.loading import NUMERAL
from core.errors import UserError

MOST_DIGITS = 15  # of a number on the command line
SLURM_ONLY = (
    "partition",
    "account",
    "qos",
    "time",
    "gpus_per_run",
    "cpus_per_run",
    "array_parallelism",
    "sbatch",
    "dry_run",
)


def number(text: str) -> float:
    """A finite number on the command line, written in digits."""
    if NUMERAL.fullmatch(text) is None or not math.isfinite(float(text)):
        raise argparse.ArgumentTypeError(f"'{_shown(text)}' is not a finite number, such as 0.5 or 1e-3")
    return float(text)


def whole(text: str) -> int:
    """A whole number on the command line; its range is the command's to check."""
    if re.fullmatch(r"[-+]?(0|[1-9]\d*)", text, re.ASCII) is None or len(text) > MOST_DIGITS:
        raise argparse.ArgumentTypeError(f"'{_shown(text)}' is not a whole number of at most {MOST_DIGITS} digits")
    return int(text)


def positive(text: str) -> int:
    """A whole number from 1 on, on the command line."""
    if re.fullmatch(r"[1-9]\d*", text, re.ASCII) is None or len(text) > MOST_DIGITS:
        raise argparse.ArgumentTypeError(
            f"'{_shown(text)}' is not a whole number from 1 on, of at most {MOST_DIGITS} digits"
        )
    return int(text)


def share(text: str) -> float:
    """A share between 0 and 1, on the command line."""
    if not 0 < (found := number(text)) < 1:
        raise argparse.ArgumentTypeError(f"'{_shown(text)}' is not a share between 0 and 1, such as 0.1")
    return found


def workers(text: str) -> int | str:
    """A number of processes, or "auto"."""
    return text if text == "auto" else positive(text)


def _shown(text: str) -> str:
    return text if len(text) <= MOST_DIGITS else f"{text[:MOST_DIGITS]} ..."


def export_options(command: argparse.ArgumentParser) -> None:
    """Of `ablate export`."""
    command.add_argument("--arm", help="export this arm instead of the winner")
    command.add_argument("--force", action="store_true", help="a winner before it is confirmed, marked so")
    command.add_argument(
        "--to",
        type=Path,
        metavar="FOLDER",
        help="where to (default: export/ beside the records; hf/ in the folder of a run)",
    )
    command.add_argument(
        "--format", choices=("config", "hf"), default="config", help="hf: trained weights, as transformers reads them"
    )
    command.add_argument(
        "--target", metavar="PRESET|FILE", help="carry the arm to this model, such as llada_moe_7b_a1b"
    )
    command.add_argument("--cluster", metavar="CLUSTER", help="that the target is laid out for, such as 64xH100-80G")
    command.add_argument("--tokens", metavar="N", help="that the target is trained on, such as 10T (default: its own)")
    command.add_argument("--rule", metavar="NAME", help="of rescaling: compute (default), width, none")


def sample_options(command: argparse.ArgumentParser) -> None:
    """Of `ablate sample`."""
    command.usage = "ablate sample MODEL [--prompt TEXT ...] [options]"
    command.add_argument(
        "model", type=Path, metavar="MODEL", help="a run's, an imported or a Hugging Face model's folder"
    )
    command.add_argument(
        "--prompt", action="append", metavar="TEXT", help="may be repeated; ░ in it is a mask (default: none)"
    )
    command.add_argument("--tokenizer", metavar="PATH", help="a tokenizer.json, or 'bytes' (default: the model's own)")
    command.add_argument("--length", type=whole, metavar="N", help="tokens of the response (default: 128)")
    command.add_argument(
        "--block-length", type=whole, metavar="N", help="decode block after block (default: all at once)"
    )
    command.add_argument("--steps", type=whole, metavar="N", help="network calls (default: one for each token)")
    command.add_argument("--remasking", metavar="RULE", help="low_confidence (default), random, entropy or margin")
    command.add_argument(
        "--threshold", type=number, metavar="P", help="fix what is at least so sure, instead of --steps"
    )
    command.add_argument(
        "--low-threshold", type=number, metavar="P", help="and the best of each run that is at least so sure"
    )
    command.add_argument("--temperature", type=number, metavar="T", help="of Gumbel noise (default: 0)")
    command.add_argument("--cfg", type=number, metavar="W", help="scale of classifier-free guidance (default: 0)")
    command.add_argument(
        "--cache", metavar="KIND", help="prefix or dual: keep keys and values outside the block (default: none)"
    )
    command.add_argument("--seed", type=whole, metavar="N", help="of the noise (default: 0)")
    command.add_argument("--trace", type=Path, metavar="FILE", help="write which call fixed which token, as JSON")


def layout_options(command: argparse.ArgumentParser) -> None:
    """Of `ablate layout`."""
    command.usage = "ablate layout CONFIG --cluster 64xH100-80G [options] [key=value ...]"
    command.add_argument("config", metavar="CONFIG", help="a preset, such as llada_moe_7b_a1b, or a YAML config")
    command.add_argument(
        "--cluster", required=True, metavar="COUNTxDEVICE", help="such as 64xH100-80G, 32xA100-40G/4, or a YAML file"
    )
    command.add_argument("--tokens", metavar="N", help="to train on, such as 10T (default: the config's steps)")
    command.add_argument(
        "--calibrate",
        type=Path,
        metavar="RECORD",
        help="a finished run's folder or record, whose time corrects the model's",
    )
    command.add_argument("--as-is", action="store_true", help="weigh the config's own layout, and no other")
    command.add_argument("--no-offload", action="store_true", help="keep all states on the devices")
    command.add_argument("--across-nodes", action="store_true", help="let experts be shared out over several nodes")
    command.add_argument("--headroom", type=number, metavar="SHARE", help="of memory to leave free (default: 0.08)")
    command.add_argument(
        "--imbalance", type=number, metavar="X", help="rows of the fullest device over the mean (default: 1.5)"
    )


def slurm_options(command: argparse.ArgumentParser) -> None:
    """Of commands that may submit to Slurm."""
    command.add_argument(
        "--launcher", choices=("local", "slurm"), default="local", help="where workers run (default: on this machine)"
    )
    group = command.add_argument_group(
        "with --launcher slurm (defaults: ~/.config/ablate/slurm.toml, or $ABLATE_CONFIG)"
    )
    for name in ("partition", "account", "qos"):
        group.add_argument(f"--{name}", metavar=name[0].upper(), help=f"Slurm's {name}")
    group.add_argument("--time", metavar="LIMIT", help="of each array task, such as 4h, 90m or 1-12:00:00")
    group.add_argument(
        "--gpus-per-run",
        type=whole,
        metavar="N",
        help="GPUs of each array task (default: one where the partition has GPUs)",
    )
    group.add_argument("--cpus-per-run", type=whole, metavar="N", help="CPUs of each array task (default: Slurm's)")
    group.add_argument("--array-parallelism", type=whole, metavar="N", help="most array tasks (default: 64)")
    group.add_argument(
        "--sbatch", action="append", metavar="KEY=VALUE", help="any other option of sbatch; may be repeated"
    )
    group.add_argument("--dry-run", action="store_true", help="print the batch script; nothing is submitted or written")


def bench_options(command: argparse.ArgumentParser) -> None:
    """Of `ablate bench`. Options whose default depends on what is asked are None where they aren't given."""
    command.usage = "ablate bench sampling|tasks|text|pairs|lm-eval|humaneval MODEL [options]"
    command.add_argument(
        "kind",
        choices=("sampling", "tasks", "text", "pairs", "lm-eval", "humaneval"),
        metavar="WHAT",
        help="sampling (time), tasks (answers), text (quality), pairs (likelihood), lm-eval (its tasks) or humaneval",
    )
    command.add_argument("model", type=Path, metavar="MODEL", help="a run's, an imported or a Hugging Face folder")
    for name, shown, text in (
        ("length", "128; lm-eval: as the task says, or 256; humaneval: 512", "tokens of a response"),
        ("block-length", "32", "decoded before the next block is begun"),
        ("batch", "1 4; lm-eval, humaneval: 16", "sequences at once"),
        ("tokens-per-call", "1 2; lm-eval, humaneval: 1", "that a call fixes: length over network calls"),
    ):
        command.add_argument(f"--{name}", type=whole, nargs="+", metavar="N", help=f"{text} (default: {shown})")
    command.add_argument("--prompt-length", type=whole, default=32, metavar="N", help="of held-out text (default: 32)")
    command.add_argument(
        "--threshold", type=number, metavar="P", help="of threshold unmasking (default: 0.9; lm-eval, humaneval: none)"
    )
    for name, kind, several in (("remasking", str, ["low_confidence"]), ("thresholds", number, [0.95, 0.9])):
        command.add_argument(
            f"--{name}", type=kind, nargs="+", default=several, metavar="X", help="tasks, text: compared"
        )
    command.add_argument(
        "--count", type=whole, default=64, metavar="N", help="tasks, text, pairs: held-out prompts (default: 64)"
    )
    command.add_argument(
        "--judge",
        type=Path,
        metavar="PATH",
        help="text: a causal model that reads the responses (run, import or HF folder)",
    )
    command.add_argument("--draws", type=whole, default=32, metavar="K", help="pairs: of masks (default: 32)")
    command.add_argument(
        "--temperature", type=number, metavar="T", help="text: of the noise (default: 1; lm-eval: as the task says)"
    )
    command.add_argument("--rounds", type=whole, default=5, metavar="N", help="of which medians are taken (default: 5)")
    _judged_options(command)


def _judged_options(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("lm-eval and humaneval (extra `eval`)")
    group.add_argument("--tasks", metavar="NAME,...", help="lm-eval: its tasks, such as gsm8k,mmlu_pro")
    group.add_argument("--include-path", type=Path, metavar="DIR", help="lm-eval: more tasks, as YAML files")
    group.add_argument(
        "--few-shot", type=whole, metavar="N", help="lm-eval: examples in a prompt (default: the task's)"
    )
    group.add_argument(
        "--samples", type=whole, default=128, metavar="K", help="lm-eval: masks of an answer (default: 128)"
    )
    group.add_argument(
        "--context", type=whole, metavar="N", help="tokens of prompt and response (default: the model's)"
    )
    group.add_argument("--limit", type=whole, metavar="N", help="only the first examples of a task (default: all)")
    group.add_argument("--tokenizer", metavar="PATH", help="a tokenizer.json, or 'bytes' (default: the model's own)")
    group.add_argument("--seed", type=whole, default=0, metavar="N", help="of masks and noise (default: 0)")
    group.add_argument("--to", type=Path, metavar="FILE", help="of the results (default: in MODEL's folder)")
    group.add_argument(
        "--samples-per-problem", type=whole, default=1, metavar="N", help="humaneval: responses to each (default: 1)"
    )
    group.add_argument(
        "--execute", action="store_true", help="humaneval: run what the model wrote, confined (default: only write it)"
    )


def check_flags(arguments: argparse.Namespace) -> None:
    """Refuse options that the chosen launcher has no use for."""
    given = [
        name for name in SLURM_ONLY if getattr(arguments, name) is not None and getattr(arguments, name) is not False
    ]
    if arguments.launcher == "local" and given:
        raise UserError(f"--{given[0].replace('_', '-')} is an option of --launcher slurm: add that, or leave it out")
    if arguments.launcher == "slurm" and getattr(arguments, "workers", None) is not None:
        raise UserError("--workers counts this machine's processes; with --launcher slurm use --array-parallelism")


def check_lists(arguments: argparse.Namespace, names: Sequence[str]) -> None:
    """Refuse options of a grid that are below 1."""
    for name in names:
        if min(getattr(arguments, name)) < 1:
            raise UserError(f"--{name.replace('_', '-')} must be at least 1, not {min(getattr(arguments, name))}")
