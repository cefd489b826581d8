"""`ablate bench lm-eval`: the tasks of lm-eval, answered by a model as it is decoded here."""

import argparse
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ablations.cli.models import Opened, open_model
from ablations.cli.options import check_at_least
from ablations.cli.terminal import show
from core.diffusion.sampling import Sampling
from core.errors import UserError
from core.records.run_record import write_atomically
from core.runtime.terminal import Terminal
from core.runtime.terminal_table import labelled

if TYPE_CHECKING:
    from core.probes.responses import Responder  # loads torch

INSTALL = "pip install 'moe-diffusion-ablations[eval]'"
BLOCK, BATCH = 32, 16
CODE = "writes programs, which lm-eval would run unconfined: for HumanEval use ablate bench humaneval"


def run_lm_eval(arguments: argparse.Namespace) -> int:
    """Answer every example of the tasks; write what lm-eval makes of it."""
    names = [name for name in (arguments.tasks or "").split(",") if name]
    if not names:
        raise UserError("lm-eval needs --tasks, such as --tasks gsm8k,mmlu_pro")
    check_at_least(1, arguments, "limit", "samples")
    check_at_least(0, arguments, "few_shot")
    opened, settings = asked_of(arguments)
    tasks = _load(names, arguments)  # before the weights: what can't be asked needs none
    content = _evaluate(tasks, responder_of(opened, settings, arguments), arguments)
    path = arguments.to or arguments.model / f"lm-eval.{re.sub(r'[^A-Za-z0-9_.-]+', '_', '+'.join(names))[:100]}.json"
    save(path, content)
    return show(content, arguments, partial(_print, path=path))


def asked_of(arguments: argparse.Namespace) -> tuple[Opened, Sampling]:
    """The model and how it is to be decoded, of the options that lm-eval and humaneval share. Raises UserError."""
    for name in ("block_length", "batch", "tokens_per_call", "remasking", "length"):
        several = getattr(arguments, name)
        if several is not None and len(several) > 1:
            raise UserError(f"--{name.replace('_', '-')} takes one value here, not {len(several)}")
    check_at_least(1, arguments, "block_length", "batch", "tokens_per_call", "length")
    opened = open_model(arguments.model, arguments.tokenizer)
    if opened.tokenizer is None:
        raise UserError(
            f"{arguments.model}: the model's tokens are numbers, and the tasks are text: name a --tokenizer"
        )
    size = (arguments.block_length or [BLOCK])[0]
    settings = Sampling(
        length=size,
        block_length=size,
        remasking=arguments.remasking[0],
        threshold=arguments.threshold,
        seed=arguments.seed,
    )
    return opened, settings


def responder_of(opened: Opened, settings: Sampling, arguments: argparse.Namespace) -> "Responder":
    """Responder of the model with these settings."""
    from core.probes.responses import Responder  # torch, which mistakes are refused without

    assert opened.tokenizer is not None
    return Responder(
        opened.denoiser,
        opened.tokenizer,
        settings,
        tokens_per_call=(arguments.tokens_per_call or [1])[0],
        batch=(arguments.batch or [BATCH])[0],
    )


def _manager(names: Sequence[str], folder: Path | None) -> Any:
    """lm-eval's index of tasks: of the user's folder alone where that has them all, as its own 14,000 files take long."""
    try:
        import datasets
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise UserError(f"lm-eval isn't installed ({error.name}): {INSTALL}") from None
    if not os.isatty(2):
        datasets.disable_progress_bars()
    if folder is None:
        return TaskManager()
    if not folder.is_dir():
        raise UserError(f"--include-path {folder} is no folder: name one that holds tasks as YAML files")
    own = TaskManager(include_path=str(folder), include_defaults=False)
    return own if set(names) <= set(own.all_tasks) else TaskManager(include_path=str(folder))


def _load(names: Sequence[str], arguments: argparse.Namespace) -> dict[str, Any]:
    """The tasks and groups as lm-eval has them, with their examples. Raises UserError: where it or they can't be had."""
    manager = _manager(names, arguments.include_path)
    loaded: dict[str, Any] = {"tasks": {}, "groups": {}, "group_map": {}}
    for name in names:
        if name not in manager.all_tasks:
            raise UserError(f"lm-eval has no task {name}{_nearest(name, manager.all_tasks)}")
        for kind, found in _load_one(manager, name).items():
            loaded[kind] |= found
    for name, task in loaded["tasks"].items():
        if getattr(task, "UNSAFE_CODE", False):
            raise UserError(f"task {name} {CODE}")
        said = task.get_config("num_fewshot")
        if arguments.few_shot is not None and said != 0:  # 0 in a task's file is meant
            task.set_config(key="num_fewshot", value=arguments.few_shot)
        elif said is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=arguments.seed)
    return loaded


def _load_one(manager: Any, name: str) -> Mapping[str, Any]:
    try:
        return manager.load([name])
    except Exception as error:  # of lm-eval, datasets, the hub, its transport, or a task's own code
        first = next(iter(str(error).strip().splitlines()), "no message")
        said = f"{type(error).__name__}: {first[:300]}"
        away = isinstance(error, (OSError, ImportError)) or type(error).__module__.split(".")[0] in (
            "datasets", "huggingface_hub", "httpx", "httpx2", "requests",
        )  # fmt: skip
        what = "its data can't be had" if away else "it can't be loaded"
        raise UserError(f"lm-eval's task {name}: {what} ({said})") from error


def _nearest(name: str, known: Sequence[str]) -> str:
    import difflib

    close = difflib.get_close_matches(name, known, n=1)
    return f": did you mean {close[0]}?" if close else "; --include-path names a folder of more"


def _evaluate(tasks: dict[str, Any], responder: "Responder", arguments: argparse.Namespace) -> dict[str, Any]:
    import lm_eval
    from lm_eval.evaluator import evaluate

    from core.probes.harness import MaskedLM  # loads torch

    model = MaskedLM(
        responder,
        draws=arguments.samples,
        context=arguments.context,
        length=arguments.length[0] if arguments.length else None,
        temperature=arguments.temperature,
    )
    found = evaluate(lm=model, task_dict=tasks, limit=arguments.limit, bootstrap_iters=1000, log_samples=False)
    assert found is not None  # it is for ranks other than 0
    return {
        "model": str(arguments.model),
        "causal": responder.denoiser.config.causal,
        "lm_eval": lm_eval.__version__,
        "settings": model.settings(),
        "rows": _rows(found),
        **model.counts(),
    }


def _rows(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One for each task or group, metric and filter: value, lm-eval's standard error, number of examples."""
    rows = []
    for task, values in found["results"].items():
        for key, value in values.items():
            metric, _, kind = key.partition(",")
            if not kind or metric.endswith("_stderr") or not isinstance(value, (int, float)):
                continue
            error = values.get(f"{metric}_stderr,{kind}")
            rows.append(
                {
                    "task": task,
                    "version": found.get("versions", {}).get(task),
                    "few_shot": found.get("n-shot", {}).get(task),
                    "metric": metric,
                    "filter": kind,
                    "value": float(value) if math.isfinite(value) else None,
                    "standard_error": error if isinstance(error, (int, float)) and math.isfinite(error) else None,
                    "higher_is_better": found.get("higher_is_better", {}).get(task, {}).get(metric),
                    "examples": found.get("n-samples", {}).get(task, {}).get("effective"),
                }
            )
    return rows


def save(path: Path, content: Mapping[str, Any]) -> None:
    """Write results as JSON. Raises UserError where there is no writing."""
    save_text(path, json.dumps(content, indent=2, allow_nan=False, default=str) + "\n")


def save_text(path: Path, text: str) -> None:
    """Write a file of results, whole or not at all. Raises UserError where there is no writing."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, text)
    except PermissionError:
        raise UserError(f"{path} can't be written: name another file with --to") from None


def _print(content: Mapping[str, Any], out: Terminal, path: Path) -> None:
    names = ("few-shot", "metric", "filter", "value", "± s.e.", "examples")
    table = labelled("task", *names, left=("metric", "filter"))
    for row in content["rows"]:
        table.add(
            row["task"],
            *("" if row["few_shot"] is None else str(row["few_shot"]), row["metric"], row["filter"]),
            "missing" if row["value"] is None else f"{row['value']:.4g}",
            "" if row["standard_error"] is None else f"{row['standard_error']:.2g}",
            "" if row["examples"] is None else str(row["examples"]),
        )
    out.print(table)
    for kind, cut in content["truncated"].items():
        if cut:
            out.unwrapped(
                f"{kind}: {cut} of {content['requests'][kind]} requests lost the beginning of their context, which is longer "
                f"than {content['settings']['context']} tokens leave room for"
            )
    if content["mean_standard_error"]:
        out.unwrapped(
            f"likelihoods are bounds by {content['settings']['draws']} masks each; their standard error is "
            f"{content['mean_standard_error']:.2g} nats on average"
        )
    out.unwrapped(f"results: {path}")
