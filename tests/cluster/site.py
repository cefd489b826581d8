"""A real Slurm on this host: a controller, four virtual nodes with two make-believe GPUs each, and two partitions."""

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "squeue", "scontrol", "srun")
NODES = 4
# Preempted jobs of `low` are given GraceTime; a requeued job may start again as soon as its credential has expired.
CONFIG = """\
ClusterName=ci
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthInfo=socket={place}/munge.sock,cred_expire=5
StateSaveLocation={place}/state
SlurmdSpoolDir={place}/spool/%n
SlurmctldPidFile={place}/ctld.pid
SlurmdPidFile={place}/slurmd-%n.pid
SlurmctldLogFile={place}/log/ctld.log
SlurmdLogFile={place}/log/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SchedulerParameters=sched_interval=2,bf_interval=2
CommunicationParameters=NoInAddrAny
GresTypes=gpu
KillWait=20
SlurmdTimeout=10
MinJobAge=3600
ReturnToService=2
MpiDefault=none
NodeName=n[1-{nodes}] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{first}-{last}] CPUs=4 RealMemory=8000 Gres=gpu:2
PartitionName=low Nodes=ALL Default=YES PriorityTier=1 GraceTime=120 MaxTime=60 State=UP
PartitionName=high Nodes=ALL PriorityTier=10 PreemptMode=OFF MaxTime=60 State=UP
PartitionName=closed Nodes=ALL AllocNodes=elsewhere MaxTime=60 State=UP
"""


def missing() -> str | None:
    """Why Slurm can't be started here; None when it can."""
    absent = [name for name in PROGRAMS if shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin") is None]
    if absent:
        return f"Slurm is not installed ({', '.join(absent)} not found): apt-get install slurmctld slurmd slurm-client munge"
    return None if os.geteuid() == 0 else "Slurm's daemons can be started by root only"


class Site:
    """The running daemons. conf: what SLURM_CONF must name for Slurm's commands."""

    def __init__(self, place: Path) -> None:
        self.place, self.conf = place, place / "slurm.conf"
        self.environment = os.environ | {"SLURM_CONF": str(self.conf), "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}

    def start(self) -> None:
        """Start everything and wait until all nodes are idle. Raises RuntimeError with the daemons' last words."""
        for name in ("state", "spool", "log"):
            (self.place / name).mkdir(parents=True)
        port, host = _free_ports(NODES + 1), socket.gethostname().partition(".")[0]
        self.conf.write_text(
            CONFIG.format(host=host, port=port, first=port + 1, last=port + NODES, place=self.place, nodes=NODES)
        )
        gpus = [f"NodeName=n{i} Name=gpu Count=2 File=/dev/tty[{2 * i}-{2 * i + 1}]" for i in range(1, NODES + 1)]
        (self.place / "gres.conf").write_text("\n".join(gpus) + "\n")
        key = self.place / "munge.key"
        key.write_bytes(secrets.token_bytes(1024))
        key.chmod(0o400)
        names = {"key-file": key, "socket": "munge.sock", "pid-file": "munged.pid", "seed-file": "munge.seed"}
        options = [f"--{name}={self.place / path}" for name, path in names.items()]
        self.run("munged", "--force", *options, f"--log-file={self.place}/log/munged.log")
        self.run("slurmctld", "-f", str(self.conf))
        for number in range(1, NODES + 1):
            self.start_node(number)
        deadline = time.monotonic() + 60
        while self._idle() != NODES:
            if time.monotonic() > deadline:
                raise RuntimeError(f"Slurm's nodes don't come up: {self._last_words()}")
            time.sleep(0.1)

    def start_node(self, number: int) -> None:
        self.run("slurmd", "-N", f"n{number}", "-f", str(self.conf))

    def kill_node(self, number: int) -> None:
        """Kill a node's daemon, as a crash does; its jobs' processes live on."""
        os.kill(int((self.place / f"slurmd-n{number}.pid").read_text()), signal.SIGKILL)

    def run(self, *command: str) -> str:
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=60)
        if done.returncode:
            raise RuntimeError(f"{command[0]}: {done.stderr.strip()}")
        return done.stdout.strip()

    def wait_until(self, holds: Callable[[], object], limit_s: float = 480) -> None:
        """Wait for a condition. Raises AssertionError with what Slurm's queue shows when it doesn't come true."""
        deadline = time.monotonic() + limit_s
        while not holds():
            assert time.monotonic() < deadline, f"waited in vain; the queue: {self.run('squeue', '-r', '-t', 'all')}"
            time.sleep(0.3)  # each look starts one of Slurm's commands

    def stop(self) -> None:
        """End all jobs, then the daemons, and wait until they are gone."""
        with contextlib.suppress(RuntimeError, subprocess.TimeoutExpired):
            self.run("scancel", "--signal=KILL", "--full", "--user=root")
            self.run("scancel", "--user=root")
        pids = [int(path.read_text()) for path in self.place.glob("*.pid") if path.read_text().strip()]
        for number in (signal.SIGTERM, signal.SIGKILL):
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
            deadline = time.monotonic() + 5
            while any(Path(f"/proc/{pid}").exists() for pid in pids) and time.monotonic() < deadline:
                time.sleep(0.05)

    def _idle(self) -> int:
        with contextlib.suppress(RuntimeError):
            return int(self.run("sinfo", "-h", "-p", "low", "-t", "idle", "-o", "%D") or 0)
        return 0

    def _last_words(self) -> str:
        lines = [path.read_text(errors="replace").splitlines()[-1:] for path in (self.place / "log").iterdir()]
        return "; ".join(line for part in lines for line in part)


def _free_ports(count: int) -> int:
    """The first of so many consecutive ports that nobody uses; pytest's processes look in different places."""
    place = 27000 + 500 * int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 5000
    for first in range(place, 32000, count):
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            for port in range(first, first + count):
                probe = stack.enter_context(contextlib.closing(socket.socket()))
                probe.bind(("127.0.0.1", port))
            return first
    raise RuntimeError("no free ports for Slurm")
