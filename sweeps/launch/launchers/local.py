"""Workers on this machine."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from core.runtime.units import counted
from sweeps.launch import running_sweeps
from sweeps.launch.events import Summary
from sweeps.launch.launcher import Cancelled, Launcher, Option, Order
from sweeps.runs.array_tasks import Task


class Local:
    """Processes that this one starts, watches and ends."""

    name, here, title, parallelism = "local", True, "", "workers"
    options: Sequence[Option] = ()

    def launch(self, plan: Any, out: Path, order: Order) -> Summary:
        """Train on this machine, waiting for the end."""
        from sweeps.launch.local import run  # loads Optuna

        asked = {name: getattr(order, name) for name in ("storage_url", "workers", "on_event", "retry_failed")}
        return run(plan, out, **asked)

    def cancel(self, study: Path, folders: Sequence[Path]) -> Cancelled:
        """Ask the sweeps of this host to stop, as Ctrl-C does."""
        stopped = [running_sweeps.stop(folder) for folder in folders]
        mine = {process for processes, _ in stopped for process in processes}
        hosts = sorted({host for _, hosts in stopped for host in hosts})
        text = f"{counted(len(mine), 'sweep')} on this machine asked to stop"
        return Cancelled(len(mine), text, tuple(f"one runs on {host}: cancel it there" for host in hosts))

    def has(self, study: Path) -> bool:
        return False

    def tasks(self, study: Path) -> Sequence[Task]:
        return ()


LAUNCHER: Launcher = Local()
