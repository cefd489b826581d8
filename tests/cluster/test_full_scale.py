"""An export trains on a cluster by its own script, and continues after a request to stop."""

import re
import subprocess

import pytest

from core.capacity.clusters import Cluster
from core.capacity.layouts import Layout
from core.capacity.planning import plan
from core.config.loading import build
from core.records import run_record
from sweeps.export.full_scale import SCRIPT, FullScale, write
from sweeps.export.transfer import RULES
from sweeps.launch.slurm_request import defaults
from tests.core.training.test_run import QUICK

BASIS = {
    "ablation": "toy", "question": "?", "metric": "val/nelbo", "control": "a", "seeds": [0], "size": "full",
    "data_fingerprint": ["x"], "commits": ["y"], "uncommitted_changes": False, "command": "ablate run toy",
    "arm": {"label": "b", "settings": {}, "parameters": {"total": 1, "active": 1}},
}  # fmt: skip


@pytest.mark.slow
def test_the_exported_script_trains_on_two_nodes_and_goes_on_when_it_was_told_to_stop(cluster, tmp_path) -> None:
    target = build(QUICK, {"trainer.steps": 120, "trainer.validate_every": 60, "trainer.log_every": 10})
    machines = Cluster.parse("2xcpu/1")
    layout = Layout(stage=2, expert_parallel=2, micro_batch=target.trainer.batch_size // 2)
    planned = plan(target, machines, layout=layout)
    scale = FullScale("toy", planned.config, target, target, [], RULES["none"], machines, planned)
    folder = tmp_path / "export"
    write(scale, BASIS, {}, folder, defaults())
    script = (folder / SCRIPT).read_text()
    assert "#SBATCH --nodes=2\n" in script and "gpus" not in script and "#SBATCH --partition=low\n" in script

    environment = cluster.environment | {"MASTER_ADDR": "127.0.0.1", "WANDB_MODE": "disabled", "OMP_NUM_THREADS": "1"}
    told = subprocess.run(
        ["sbatch", "--parsable", str(folder / SCRIPT)], env=environment, capture_output=True, text=True, cwd=tmp_path
    )
    assert told.returncode == 0, told.stderr
    job, log = told.stdout.strip(), folder / f"log-{told.stdout.strip()}.txt"
    cluster.wait_until(lambda: log.is_file() and re.search(r"step \d+0/120", log.read_text()))
    cluster.run("scancel", "--signal=USR1", "--full", job)  # as Slurm does before the time limit
    place = folder / "runs" / "train"
    cluster.wait_until(
        lambda: list(place.glob("*/record.json")) or "FAILED" in cluster.run("scontrol", "show", "job", job)
    )
    # A job that is cancelled while it ends starts again.
    cluster.wait_until(lambda: job not in cluster.run("squeue", "--noheader", "--format=%A").split())
    printed = log.read_text()
    assert "every check passed" in printed and "going on from the checkpoint of step" in printed, printed
    [record] = [run_record.read(path) for path in place.glob("*/record.json")]
    assert record.status == "complete" and record.provenance["devices"] == 2, record.reason
    assert record.curve["step"][-1] == 120
