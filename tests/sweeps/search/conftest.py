from types import SimpleNamespace

import pytest

from sweeps.launch.worker import StopSignal, Worker
from sweeps.search.plan import plan
from sweeps.search.queue import SearchLedger
from sweeps.search.results import Results
from sweeps.search.spec import Budget, Choice, Int, Log, Search
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


@pytest.fixture
def search():
    return declare


@pytest.fixture
def run(tmp_path):
    """Search in this process, with a stand-in trainer; returns the plan, the ledger, what was heard, and the results."""

    def work(train=trainers.landscape, out=tmp_path / "out", **changes):
        planned = plan("toy", declare(**changes))
        ledger = SearchLedger(planned, out, open_storage(default_url(out)))
        (ledger.folder / "design.json").write_text(__import__("json").dumps(planned.design.to_json()))
        heard = []
        Worker(ledger, train, lambda **event: heard.append(event), StopSignal()).work()
        results = Results.load(ledger.folder)
        return SimpleNamespace(plan=planned, ledger=ledger, heard=heard, results=results, out=out)

    return work


__all__ = ["Budget", "Choice", "Int", "Log"]
