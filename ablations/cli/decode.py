"""`ablate decode`: every trained model of an ablation answers held-out prompts, in each of its ways of decoding."""

import argparse
import multiprocessing
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import replace

from ablations.cli import studies
from ablations.cli.plan import make_plan
from ablations.cli.terminal import console
from core.errors import UserError
from core.records.decoded import Decoded
from core.runtime.terminal import Terminal
from core.training.deepspeed_config import uses_cuda
from sweeps.launch.machine import default_workers
from sweeps.runs.answers import Asked, answer, missing
from sweeps.studies.plan import Plan
from sweeps.tracking.wandb_run import tell_answers


def run_decode(arguments: argparse.Namespace) -> int:
    """Decode what isn't decoded yet of the finished runs."""
    plan = make_plan(arguments)
    if plan.design.decoders is None:
        raise UserError(f"{plan.name}: it declares no decoders, so there is nothing to decode (see docs/sampling.md)")
    failed = decode_here(arguments, plan, console())
    console().print(f"next: {studies.command('report', arguments, plan.size)}")
    return 1 if failed else 0


def decode_here(arguments: argparse.Namespace, plan: Plan, out: Terminal) -> int:
    """Decode finished runs on this machine, a process for each core or GPU, and say how many answers could not be had."""
    todo = list(missing(plan, arguments.out))
    workers = default_workers() if arguments.workers in (None, "auto") else arguments.workers
    assert plan.design.decoders is not None
    seeds, done, failures = plan.design.decoders.decode_seeds, 0, 0
    total = sum(len(asked.ways) for asked in todo)
    context = multiprocessing.get_context("forkserver")  # one import of torch for all of them
    context.set_forkserver_preload(["sweeps.runs.answers"])
    with ProcessPoolExecutor(min(workers, max(1, len(todo))), context, _one_thread) as pool:
        running = {pool.submit(answer, asked, seeds, _device(asked, n)): asked for n, asked in enumerate(todo)}
        left = set(running)
        while left:
            finished, left = wait(left, return_when=FIRST_COMPLETED)
            for future in finished:
                found, asked = _result(future, running[future]), running[future]
                failures += sum(one.reason is not None for one in found)
                done += len(found)
                tell_answers(plan, asked.run, asked.folder, found)
                out.print(f"decoded {asked.run.label}: {done} of {total}")
                for one in found:
                    if one.reason is not None:
                        out.print(f"  {one.decoder} failed: {one.reason}", style="red")
    out.print(f"{plan.study_name}: {done - failures} ways of decoding answered, {failures} failed")
    return failures


def _result(future: "Future[list[Decoded]]", asked: Asked) -> list[Decoded]:
    try:
        return future.result()
    except (UserError, OSError) as error:  # weights that are gone: the other runs' are there
        return [replace(way, reason=str(error)) for way in asked.ways]


def _device(asked: Asked, number: int) -> str:
    if not uses_cuda(asked.run.config):
        return "cpu"
    import torch

    return f"cuda:{number % torch.cuda.device_count()}"


def _one_thread() -> None:
    import torch  # in a process of its own

    torch.set_num_threads(1)
