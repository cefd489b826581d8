"""`ablate sync`: runs that were trained offline, sent to W&B once each. Nothing here imports torch."""

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from ablations.cli.declarations import started_folder
from ablations.cli.terminal import show
from core.runtime.terminal import Terminal
from core.runtime.units import counted
from sweeps.kinds import operations_of
from sweeps.tracking.wandb_sync import Offline, OfflineRun, Server, offline_runs, send, sending


def run_sync(arguments: argparse.Namespace) -> int:
    """Send what waits. Returns 1 when some of it couldn't be sent."""
    study, kind = started_folder(arguments)
    folders = [arguments.out / name for name in operations_of(kind).folders(study)]
    found, failures = _sync([folder for folder in folders if folder.is_dir()])
    show(_content(study, found, failures), arguments, _print)
    return int(bool(failures))


def _sync(folders: Sequence[Path]) -> tuple[Offline, dict[str, str]]:
    """Send what waits in some folders; what was found there, and why what wasn't sent was not, by W&B id."""
    found = _found(folders)
    if not found.waiting:
        return found, {}
    try:
        server = Server()
    except ConnectionError as error:
        return found, dict.fromkeys((run.run_id for run in found.waiting), str(error))
    with ExitStack() as stack:
        locks = [sending(folder) for folder in folders]
        for lock in locks:
            stack.callback(lock.release)
        found = _found(folders)  # another may have sent some before the locks were ours
        handles = tuple(handle for lock in locks for handle in lock.handles)
        with _progress(found.waiting) as on_sent:
            return found, send(found.waiting, server, handles, on_sent)


def _found(folders: Sequence[Path]) -> Offline:
    each = [offline_runs(folder) for folder in folders]
    waiting = tuple(run for one in each for run in one.waiting)
    return Offline(waiting, sum(one.training for one in each), sum(one.sent for one in each))


@contextmanager
def _progress(runs: Sequence[OfflineRun]) -> Iterator[Callable[[], None]]:
    """A bar on a terminal; nothing elsewhere."""
    err = Terminal(file=sys.stderr)
    columns = (TextColumn("sending to W&B"), BarColumn(24), MofNCompleteColumn())
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal or err.is_dumb_terminal) as bar:
        task = bar.add_task("", total=sum(len(run.waiting) for run in runs))
        yield lambda: bar.advance(task)


def _content(study: str, found: Offline, failures: Mapping[str, str]) -> dict[str, Any]:
    failed = [
        {"run": run.label, "id": run.run_id, "reason": failures[run.run_id]}
        for run in found.waiting
        if run.run_id in failures
    ]
    counts = {"sent": len(found.waiting) - len(failed), "sent_before": found.sent, "training": found.training}
    return {"study": study, **counts, "failed": failed}


def _print(content: Mapping[str, Any], out: Terminal) -> None:
    failed = content["failed"]
    if not content["sent"] and not failed:
        nothing = "nothing to send" if content["sent_before"] or content["training"] else "no run was mirrored offline"
        said = [nothing]
    else:
        said = [f"{counted(content['sent'], 'run')} sent to W&B"]
    said += [f"{content['sent_before']} sent before"] if content["sent_before"] else []
    said += [f"{content['training']} in training left alone"] if content["training"] else []
    said += [f"{len(failed)} not sent"] if failed else []
    out.print(f"{content['study']}: {', '.join(said)}")
    by_reason: dict[str, list[str]] = {}
    for each in failed:
        by_reason.setdefault(each["reason"], []).append(each["run"])
    for reason, labels in by_reason.items():
        more = f" and {len(labels) - 5} more" if len(labels) > 5 else ""
        out.unwrapped(f"not sent: {', '.join(labels[:5])}{more}: {reason}", style="red")
    if failed:
        out.print("the same command sends what is left")
