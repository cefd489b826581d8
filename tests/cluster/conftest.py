import contextlib
import shutil
import tempfile
from pathlib import Path

import pytest

from tests.cluster.site import Site, missing
from tests.sweeps.conftest import make_plan, workplace  # noqa: F401  (fixtures)


@pytest.fixture(scope="session")
def site():
    """A running Slurm; tests that need it are skipped, with the reason, where there can't be one."""
    reason = missing()
    if reason:
        pytest.skip(reason)
    place = Path(tempfile.mkdtemp(prefix="slurm-"))  # short: names of sockets are limited
    running = Site(place)
    try:
        try:
            running.start()
        except RuntimeError as error:
            pytest.skip(f"Slurm can't be started here: {error}")
        yield running
    finally:
        running.stop()
        with contextlib.suppress(OSError):
            shutil.rmtree(place)


@pytest.fixture
def cluster(site, monkeypatch, tmp_path):
    """The same, in the environment of this test, and without jobs when the test ends."""
    monkeypatch.setenv("SLURM_CONF", str(site.conf))
    monkeypatch.setenv("PLACE", str(tmp_path))
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")  # tasks take all of a node's threads, and other tests run beside
    monkeypatch.setenv("ABLATE_CONFIG", str(tmp_path / "slurm.toml"))
    (tmp_path / "slurm.toml").write_text('partition = "low"\ntime = "30m"\n[sbatch]\nmem = "1G"\n')
    yield site
    site.run("scancel", "--user=root")
    site.wait_until(lambda: not site.run("squeue", "--noheader"))
