"""Free memory by the kernel's files, and the measurements that it is too little for."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from core.capacity import room
from core.capacity.room import check_room, free_memory, step_memory
from core.config.loading import build
from core.config.presets import preset
from core.config.run import to_dict
from core.errors import UserError
from core.runtime.child_process import import_path
from core.training.module import MaskedDiffusion
from tests.ablations.shell import ENVIRONMENT, ablate, mistake


def leave(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


MEMINFO = {"proc/meminfo": "MemTotal:  9000 kB\nMemFree: 10 kB\nMemAvailable:  8000 kB\n"}
V2 = "sys/fs/cgroup/user.slice"
V1 = "sys/fs/cgroup/memory/job_7"


@pytest.mark.parametrize(
    ("files", "free"),
    [
        ({}, 8000 * 1024),
        ({"proc/self/cgroup": "0::/user.slice\n", f"{V2}/memory.max": "max\n", f"{V2}/memory.current": "5\n"}, 8000 * 1024),
        ({"proc/self/cgroup": "0::/user.slice\n", f"{V2}/memory.max": "900\n", f"{V2}/memory.current": "500\n"}, 400),
        (  # what a cache holds can be dropped; the group above has less left
            {
                "proc/self/cgroup": "0::/user.slice/a\n",
                f"{V2}/a/memory.max": "900\n",
                f"{V2}/a/memory.current": "500\n",
                f"{V2}/a/memory.stat": "anon 1\ninactive_file 200\n",
                f"{V2}/memory.max": "1000\n",
                f"{V2}/memory.current": "700\n",
            },
            300,
        ),
        (
            {
                "proc/self/cgroup": "5:cpu:/x\n4:memory:/job_7/step_0\n",
                f"{V1}/memory.limit_in_bytes": "5000\n",
                f"{V1}/memory.usage_in_bytes": "4500\n",
                f"{V1}/memory.stat": "total_inactive_file 100\n",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
                "sys/fs/cgroup/memory/memory.usage_in_bytes": "1\n",
            },
            600,
        ),
    ],
)  # fmt: skip
def test_free_memory_is_the_least_of_what_machine_and_groups_leave(tmp_path, files, free) -> None:
    assert free_memory(leave(tmp_path, MEMINFO | files)) == free


def test_the_estimate_is_of_the_size_of_a_real_step() -> None:
    config = build(to_dict(preset("proxy_3m")), {"trainer.batch_size": 16})
    states = 16 * sum(parameter.numel() for parameter in MaskedDiffusion(config).parameters())
    assert states < step_memory(config) < 40 * states
    twice = build(to_dict(config), {"trainer.batch_size": 32})
    assert step_memory(twice) - step_memory(config) == pytest.approx(step_memory(config) - states, rel=0.2)


def test_more_than_a_share_is_refused(monkeypatch) -> None:
    config = build(to_dict(preset("tiny")), {"trainer.accelerator": "cpu"})
    needed = step_memory(config)
    monkeypatch.setattr(room, "free_memory", lambda: 5 * needed)
    check_room(config, 2, "do less")
    with pytest.raises(
        UserError, match=r"takes about .* GB of memory, more than 50% of the .* GB that are free here: do less"
    ):
        check_room(config, 3, "do less")


DECLARATION = """
from sweeps.studies.ablation import Ablation
from sweeps.studies.factors import Factor

ablation = Ablation(
    question="Does it matter?", factors=(Factor("objective.load_balancing_weight", (0.0, 0.01)),),
    control={{"objective.load_balancing_weight": 0.01}}, base="{base}", seeds=range(5),
)
"""
SEARCH = """
from sweeps.search.spec import Budget, Log, Search

search = Search(
    question="Which rate?", space={"optimizer.learning_rate": Log(1e-4, 1e-2)}, base="llada_moe_7b_a1b",
    budget=Budget(trials=4), seeds=range(1), confirm=5,
)
"""


def test_a_large_models_plan_allocates_nothing(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(room, "free_memory", lambda: 16 * 2**30)
    (tmp_path / "seven.py").write_text(DECLARATION.format(base="llada_moe_7b_a1b"))
    (tmp_path / "one.py").write_text(DECLARATION.format(base="proxy_1b"))
    (tmp_path / "search.py").write_text(SEARCH)
    for name in ("seven.py", "one.py", "search.py"):
        mistake(ablate("plan", name, cwd=tmp_path), "timing a few steps takes about", "--no-calibration plans without")
        done = ablate("plan", name, "--no-calibration", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    mistake(ablate("run", "one.py", "--workers", "auto", cwd=tmp_path), "name a number of workers (--workers N)")
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "__pycache__") == [
        "one.py",
        "search.py",
        "seven.py",
    ]


# By the kernel's own file: what getrusage says begins with the process that this one was forked from.
PEAK = """
import sys
from ablations.__main__ import main
status = main(sys.argv[1:])
print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM:")).split()[1])
sys.exit(status)
"""


@pytest.mark.parametrize(
    ("command", "status"),
    [
        (("plan", "seven.py"), 2),
        (("plan", "seven.py", "--no-calibration"), 0),
        (("layout", "llada_moe_7b_a1b", "--cluster", "64xH100-80G"), 0),
        (("layout", "proxy_1b", "--cluster", "8xH100-80G"), 0),
    ],
)
def test_planning_a_large_model_takes_little_memory(tmp_path, command, status) -> None:
    (tmp_path / "seven.py").write_text(DECLARATION.format(base="llada_moe_7b_a1b"))
    least = lambda: resource.setrlimit(resource.RLIMIT_AS, (8 * 2**30, 8 * 2**30))  # noqa: E731
    environment = os.environ | import_path() | ENVIRONMENT
    done = subprocess.run(
        [sys.executable, "-P", "-c", PEAK, *command],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, preexec_fn=least,
    )  # fmt: skip
    assert done.returncode == status, done.stderr
    assert int(done.stdout.splitlines()[-1]) < 300 * 1024, done.stdout  # KiB
