"""Worker processes that share a search through a database."""

import contextlib
from collections import Counter

import pytest

from sweeps.launch.local import run as search
from sweeps.search.plan import plan
from sweeps.search.results import Results
from sweeps.search.status import status
from sweeps.storage.storage import open_storage
from tests.sweeps.postgres import served
from tests.sweeps.search.conftest import Budget, declare

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(("workers", "proxied"), [(4, False), (2, True)], ids=["postgres", "proxy"])
def test_workers_search_the_whole_budget_and_train_no_step_twice(out, database, monkeypatch, workers, proxied) -> None:
    monkeypatch.setenv("STEPS", str(out.parent / "steps"))
    planned = plan("toy", declare(budget=Budget(trials=24)))
    with served(database) if proxied else contextlib.nullcontext(database) as url:
        check(planned, out, url, workers)


def check(planned, out, url, workers) -> None:
    done = search(planned, out, storage_url=url, workers=workers, trainer="tests.sweeps.search.trainers:sluggish")
    counts = done.states
    assert not done.interrupted and counts["complete"] >= 1 and counts["complete"] + counts["pruned"] == 24
    lines = [line.split() for line in (out.parent / "steps").read_text().splitlines()]
    parts = Counter(tuple(line[:3]) for line in lines)
    assert set(parts.values()) == {1} and len({line[3] for line in lines}) > 1
    assert len({line[0] for line in lines}) == 24
    found = Results.load(out / "toy")
    assert len(found.configurations) == len({c.arm for c in found.configurations}) == 24
    now = status("toy", out, url)
    assert now.over and now.counts["finished"] == counts["complete"] and now.deaths == 0
    names = [known.study_name for known in open_storage(url).get_all_studies()]
    assert names == [group.study for group in planned.groups]
