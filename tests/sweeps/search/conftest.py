from functools import partial
from types import SimpleNamespace

import pytest

from sweeps.launch.worker import StopSignal, Worker
from sweeps.runs.folders import write_design
from sweeps.search.plan import plan
from sweeps.search.queue import SearchLedger
from sweeps.search.results import Results
from sweeps.search.spec import Budget, Int, Log, Search
from sweeps.storage.storage import default_url, open_storage
from tests.sweeps.conftest import SMALL
from tests.sweeps.search import trainers

RATE, WEIGHT, ROUTER = "optimizer.learning_rate", "objective.load_balancing_weight", "model.router.kind"
SPACE = {RATE: Log(1e-4, 1e-1), WEIGHT: Log(1e-4, 1.0, zero=True), "model.top_k": Int(1, 4)}


def declare(**changes) -> Search:
    fields = {
        "question": "Which rate suits which weight?",
        "base": "tiny",
        "space": SPACE,
        "settings": SMALL | {"trainer.steps": 36, "trainer.validate_every": 4},
        "budget": Budget(trials=9),
        "confirm": 3,
    }
    return Search(**(fields | changes))


def search_in(*, out, train=trainers.landscape, **changes):
    """Search in this process, with a stand-in trainer; returns the plan, the ledger, what was heard, and the results."""
    planned = plan("toy", declare(**changes))
    ledger = SearchLedger(planned, out, open_storage(default_url(out)))
    write_design(ledger.folder, planned.design)
    heard = work(ledger, train)
    return SimpleNamespace(plan=planned, ledger=ledger, heard=heard, results=Results.load(ledger.folder), out=out)


def work(ledger, train=trainers.landscape) -> list[dict]:
    """A worker's whole work; returns the events that it told."""
    heard = []
    Worker(ledger, train, lambda **event: heard.append(event), StopSignal()).work()
    return heard


@pytest.fixture
def run(tmp_path):
    """`search_in` a folder of the test's own."""
    return partial(search_in, out=tmp_path / "out")
