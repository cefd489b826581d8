import hashlib
import subprocess
from functools import cache

import pytest

from core.records import provenance


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A repository of one committed file in place of this one."""
    root = tmp_path / "code"
    root.mkdir()
    (root / "a.py").write_text("x = 1\n")

    def git(*arguments):
        identity = ("-c", "user.name=a", "-c", "user.email=a@b")
        return subprocess.run(["git", "-C", str(root), *identity, *arguments], check=True, capture_output=True).stdout

    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "a")
    monkeypatch.setattr(provenance, "_root", lambda: root)
    for name in ("_git", "_difference"):
        monkeypatch.setattr(provenance, name, cache(getattr(provenance, name).__wrapped__))
    return root, git


def test_a_clean_tree_is_its_commit(repository, tmp_path):
    _, git = repository
    found = provenance.describe("cpu")
    assert found["git_commit"] == git("rev-parse", "HEAD").decode().strip()
    assert (found["git_dirty"], found["git_diff_sha256"]) == (False, None)
    assert provenance.save_diff(tmp_path / "out") is None


def test_what_was_changed_is_kept_once_and_gives_the_tree_back(repository, tmp_path):
    root, git = repository
    (root / "a.py").write_bytes(b"x = 2\r\n# caf\xe9\n")
    (root / ".env").write_text("SECRET=hunter2\n")  # unknown to git
    found = provenance.describe("cpu")
    path = provenance.save_diff(tmp_path / "out")
    assert path == provenance.save_diff(tmp_path / "out")
    assert path.name == f"{found['git_diff_sha256']}.patch"
    content = path.read_bytes()
    assert hashlib.sha256(content).hexdigest() == found["git_diff_sha256"]
    assert b"hunter2" not in content
    git("checkout", "-q", "a.py")
    git("apply", str(path))
    assert (root / "a.py").read_bytes() == b"x = 2\r\n# caf\xe9\n"


def test_a_change_that_is_too_long_is_known_by_its_hash_alone(repository, tmp_path, monkeypatch):
    root, _ = repository
    monkeypatch.setattr(provenance, "LARGEST_DIFF", 10)
    (root / "a.py").write_text("x = 2\n")
    assert provenance.describe("cpu")["git_diff_sha256"]
    assert provenance.save_diff(tmp_path / "out") is None


def test_the_slurm_job_is_known_inside_one(monkeypatch):
    for name in provenance.SLURM.values():
        monkeypatch.delenv(name, raising=False)
    assert provenance.slurm_job() == {}
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    assert provenance.slurm_job() == {"slurm": {"job": "17", "array_task": "3"}}


def test_a_change_of_any_room_that_trains_is_another_version(tmp_path, monkeypatch) -> None:
    """Kinds in folders of their own too: a router, an objective, a corpus, a metric."""
    parts = ("model/routers/a", "diffusion/objectives/a", "data/kinds/a", "training/metrics/a", "registry")
    files = [tmp_path / "core" / f"{part}.py" for part in parts] + [tmp_path / "sweeps" / "launch" / "worker.py"]
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("x = 1\n")
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    hashes = [provenance.source_sha256.__wrapped__()]
    for file in files:
        file.write_text("x = 2\n")
        hashes.append(provenance.source_sha256.__wrapped__())
    assert len(set(hashes)) == len(files) + 1
    (tmp_path / "core" / "probes").mkdir()
    (tmp_path / "core" / "probes" / "a.py").write_text("x = 1\n")  # measures what was trained
    assert provenance.source_sha256.__wrapped__() == hashes[-1]
