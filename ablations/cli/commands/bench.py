"""`ablate bench`: measure the cost and the quality of decoding.

Options whose default depends on the kind of benchmark are None where they aren't given.
"""

import argparse
from pathlib import Path

from ablations.cli.command import Command
from ablations.cli.options import number, whole


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "kind",
        choices=("sampling", "tasks", "text", "pairs", "lm-eval", "humaneval"),
        metavar="WHAT",
        help="sampling (time), tasks (answers), text (quality), pairs (likelihood), lm-eval (its tasks) or humaneval",
    )
    parser.add_argument("model", type=Path, metavar="MODEL", help="a run's, an imported or a Hugging Face folder")
    for name, shown, text in (
        ("length", "128; lm-eval: as the task says, or 256; humaneval: 512", "tokens of a response"),
        ("block-length", "32", "tokens per block"),
        ("batch", "1 4; lm-eval, humaneval: 16", "sequences at once"),
        ("tokens-per-call", "1 2; lm-eval, humaneval: 1", "tokens fixed per network call"),
    ):
        parser.add_argument(f"--{name}", type=whole, nargs="+", metavar="N", help=f"{text} (default: {shown})")
    parser.add_argument(
        "--prompt-length", type=whole, default=32, metavar="N", help="tokens of held-out text (default: 32)"
    )
    parser.add_argument(
        "--threshold", type=number, metavar="P", help="probability threshold (default: 0.9; lm-eval, humaneval: none)"
    )
    for name, kind, several in (("remasking", str, ["low_confidence"]), ("thresholds", number, [0.95, 0.9])):
        parser.add_argument(
            f"--{name}", type=kind, nargs="+", default=several, metavar="X", help="tasks, text: compared"
        )
    parser.add_argument(
        "--count", type=whole, default=64, metavar="N", help="tasks, text, pairs: held-out prompts (default: 64)"
    )
    parser.add_argument(
        "--judge",
        type=Path,
        metavar="PATH",
        help="text: a causal model that scores the responses (run, import or HF folder)",
    )
    parser.add_argument("--draws", type=whole, default=32, metavar="K", help="pairs: draws of masks (default: 32)")
    parser.add_argument(
        "--temperature", type=number, metavar="T", help="text: temperature (default: 1; lm-eval: as the task says)"
    )
    parser.add_argument("--rounds", type=whole, default=5, metavar="N", help="rounds, for medians (default: 5)")
    _judged_options(parser)


def _judged_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("lm-eval and humaneval (extra `eval`)")
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
    group.add_argument("--seed", type=whole, default=0, metavar="N", help="seed of masks and noise (default: 0)")
    group.add_argument("--to", type=Path, metavar="FILE", help="file of the results (default: in MODEL's folder)")
    group.add_argument(
        "--samples-per-problem",
        type=whole,
        default=1,
        metavar="N",
        help="humaneval: responses per problem (default: 1)",
    )
    group.add_argument(
        "--execute", action="store_true", help="humaneval: run the programs, sandboxed (default: only write them)"
    )


COMMAND = Command(
    "bench", options=options, json=True, usage="bench sampling|tasks|text|pairs|lm-eval|humaneval MODEL [options]"
)
