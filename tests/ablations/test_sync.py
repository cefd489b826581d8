"""`ablate sync`: real offline runs through a real `wandb sync`, to a W&B of a few answers on loopback."""

import json
import os
from pathlib import Path

import pytest

from sweeps.runs.folders import RunLock, run_folder
from sweeps.studies.resolve import plan
from sweeps.tracking.wandb_run import WandbTracker, run_id
from sweeps.tracking.wandb_sync import LOCK_FOLDER, offline_runs
from tests.ablations.shell import ablate, mistake
from tests.ablations.test_export import DECLARATION
from tests.sweeps.conftest import declare
from tests.sweeps.tracking.test_wandb_run import LOAD, finished
from tests.sweeps.wandb_site import serving

wandb = pytest.importorskip("wandb")

KEY = "5ecre7" + "0" * 34
QUICKLY = {f"WANDB__{what}_RETRY_WAIT_{end}_SECONDS": "0.1"
           for what in ("GRAPHQL", "FILE_STREAM", "FILE_TRANSFER") for end in ("MIN", "MAX")}  # fmt: skip


@pytest.fixture
def site(monkeypatch):
    with serving() as site:
        site.key = KEY
        monkeypatch.setenv("WANDB_BASE_URL", site.url)
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        for name, value in QUICKLY.items():
            monkeypatch.setenv(name, value)
        wandb.teardown()
        yield site
        wandb.teardown()


@pytest.fixture
def study(tmp_path, site, monkeypatch):
    """Runs as workers leave them: whole; stopped and gone on with; killed and gone on with from an older checkpoint."""
    (tmp_path / "toy.py").write_text(DECLARATION)
    planned = plan("toy", declare(seeds=range(5)))
    monkeypatch.setenv("WANDB_MODE", "offline")

    def mirror(number: int, *segments: range, **changes: object) -> str:
        run = planned.runs[number]
        folder = run_folder(planned, run, tmp_path / "runs")
        for steps in segments:
            tracker = WandbTracker(planned, run, folder, run_id(run, "folder", 0))
            for step in steps:
                tracker.log_metrics({"train/nelbo": 3.0 - step / 10}, step)
            if steps is segments[-1]:
                tracker.finish(finished(run, **({"expert_load": {}} | changes)))
            else:
                tracker.leave()
            for path in folder.glob(f"wandb/offline-run-*{tracker.status['id']}"):  # their names have whole seconds
                if path.name.count("-") == 3:
                    path.rename(path.with_name(path.name.replace("offline-run-", f"offline-run-{steps.start}")))
        assert tracker.status["status"] == "offline"
        return tracker.status["id"]

    mirror.plan, mirror.folder, mirror.study = planned, tmp_path, tmp_path / "runs" / "toy"
    return mirror


def sync(folder: Path) -> tuple[int, dict]:
    wandb.teardown()
    done = ablate("sync", "toy.py", "--json", cwd=folder)
    assert KEY not in done.stdout + done.stderr
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def test_each_run_arrives_once_and_segments_are_one_run(study, site) -> None:
    whole, stopped, killed = study(0, range(6)), study(1, range(4), range(4, 9)), study(2, range(5), range(3, 8))
    busy, refused = study(3, range(3)), study(4, range(6))
    site.refuses[refused] = 2
    lock = RunLock(run_folder(study.plan, study.plan.runs[3], study.folder / "runs"))
    assert lock.acquire()
    status, said = sync(study.folder)
    assert status == 1 and (said["sent"], said["training"]) == (3, 1)
    assert [each["id"] for each in said["failed"]] == [refused]
    assert set(site.runs) == {whole, stopped, killed, refused}
    assert site.runs[whole].steps == list(range(6))
    assert site.runs[stopped].steps == list(range(9))
    assert site.runs[killed].steps == list(range(8))  # what was done again is there once
    assert [site.runs[one].exits for one in (whole, stopped, killed)] == [[0], [1, 0], [1, 0]]
    assert site.runs[stopped].summary["val/nelbo"] == 2.5
    assert site.runs[stopped].fields["groupName"] == "toy"

    del site.refuses[refused]
    status, said = sync(study.folder)
    assert status == 0 and (said["sent"], said["sent_before"], said["failed"]) == (1, 3, [])
    assert site.runs[refused].steps == list(range(6))  # two of them had arrived
    assert site.runs[stopped].exits == [1, 0]

    lock.release()
    assert sync(study.folder)[1]["sent"] == 1 and site.runs[busy].steps == [0, 1, 2]
    before = len(site.queries)
    done = ablate("sync", "toy.py", cwd=study.folder)
    assert done.returncode == 0 and done.stdout == "toy: nothing to send, 5 sent before\n"
    assert len(site.queries) == before  # nobody was asked


def test_a_run_that_goes_on_after_it_was_sent_is_appended_to(study, site) -> None:
    study(0, range(4))
    assert sync(study.folder)[1]["sent"] == 1
    name = study(0, range(4, 7))
    assert sync(study.folder)[1] == {"study": "toy", "sent": 1, "sent_before": 0, "training": 0, "failed": []}
    assert site.runs[name].steps == list(range(7))


def test_a_torn_file_is_sent_up_to_where_it_ends(study, site) -> None:
    name = study(0, range(6))
    [path] = study.study.glob("*/*/wandb/*/*.wandb")
    path.write_bytes(path.read_bytes()[:-30])
    assert sync(study.folder) == (0, {"study": "toy", "sent": 1, "sent_before": 0, "training": 0, "failed": []})
    assert site.runs[name].steps == list(range(6)) and site.runs[name].exits == [1]


def test_a_run_at_which_wandb_crashes_takes_no_other_with_it(study, site) -> None:
    """This W&B doesn't answer what wandb-core asks of artifacts, and a table is one: that ends the process."""
    first, crashing, last = study(0, range(4)), study(1, range(31), expert_load=LOAD), study(2, range(4))
    status, said = sync(study.folder)
    assert status == 1 and said["sent"] == 2
    [failed] = said["failed"]
    assert failed["id"] == crashing and failed["reason"].startswith("`wandb sync` ended with 1: panic:")
    assert site.runs[first].steps == site.runs[last].steps == list(range(4))


def test_what_cant_be_sent_is_said_in_one_line(study, site, monkeypatch) -> None:
    study(0, range(2))
    monkeypatch.setenv("WANDB_API_KEY", "f" * 40)
    wandb.teardown()
    done = ablate("sync", "toy.py", cwd=study.folder)
    assert done.returncode == 1 and "f" * 40 not in done.stdout + done.stderr
    assert "not sent: load_balancing_weight=0.01 seed 0: Failed to verify credentials" in done.stdout
    monkeypatch.delenv("WANDB_API_KEY")
    wandb.teardown()
    mistake(ablate("sync", "toy.py", cwd=study.folder), f"no credentials for {site.url}", "wandb login")
    assert not site.runs and len(offline_runs(study.study).waiting) == 1


def test_two_at_once_dont_send_twice(study, site) -> None:
    study(0, range(2))
    other = RunLock(study.study / LOCK_FOLDER)
    assert other.acquire()
    wandb.teardown()
    mistake(ablate("sync", "toy.py", cwd=study.folder), "another `ablate sync` of toy is under way")
    other.release()
    assert not site.runs


def test_nothing_to_send_is_said(study) -> None:
    mistake(ablate("sync", "toy.py", cwd=study.folder), "nothing of toy has been run")
    os.makedirs(study.study)
    assert ablate("sync", "toy.py", cwd=study.folder).stdout == "toy: no run was mirrored offline\n"
