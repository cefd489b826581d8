"""A search that is tampered with in every way that must be found."""

import copy
import json
import shutil

import pytest

from core.records.provenance import save_diff
from sweeps.launch.worker import StopRequestedError
from sweeps.search.spec import Budget, Choice, Log
from sweeps.search.verify import trials_by_group, verify
from sweeps.storage.storage import default_url, open_storage
from tests.sweeps.search import trainers
from tests.sweeps.search.conftest import RATE, ROUTER, SPACE, search_in, work
from tests.sweeps.search.test_status import mended

CHANGES = {"seeds": (0, 1), "space": SPACE | {ROUTER: Choice(("topk", "bias_balanced"))}, "compare": ROUTER}
SEED = {"val/nelbo": 9.0}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A search of two groups and two seeds, as its worker leaves it."""
    return search_in(out=tmp_path_factory.mktemp("whole") / "out", **CHANGES, budget=Budget(trials=6))


@pytest.fixture
def search(whole, tmp_path):
    """A copy to tamper with: its records' files, ways to change them, and what is found."""
    out = tmp_path / "out"
    shutil.copytree(whole.out, out)

    class Found:
        folder, design = out / "toy", whole.plan.design
        paths = {status: [] for status in ("complete", "paused", "failed")}
        told = trials_by_group(open_storage(default_url(out)), "toy", out)

        @staticmethod
        def change(path, **fields):
            path.write_text(json.dumps(json.loads(path.read_text()) | fields) + "\n")

        @staticmethod
        def entry(path):
            return path.parents[1] / f"search-{whole.plan.design.identity}.json"

        @staticmethod
        def find():
            found = verify(Found.folder, Found.told)
            return found, [str(finding) for finding in found.findings if not finding.note]

    for path in sorted(Found.folder.rglob("record.json")):
        Found.paths[json.loads(path.read_text())["status"]].append(path)
    return Found


def test_an_untouched_search_can_be_trusted(search):
    found, lines = search.find()
    assert lines == [] and found.findings == () and found.trusted
    assert (found.complete, found.paused, found.failed, found.missing) == (4, 20, 0, 0)


def test_a_search_under_way_can_be_trusted(run, tmp_path):
    calls = []

    def train(config, folder, **rest):
        calls.append(config)
        if len(calls) > 9:
            raise StopRequestedError(143)
        return trainers.landscape(config, folder, **rest)

    with pytest.raises(StopRequestedError):
        run(train=train, **CHANGES)
    out = tmp_path / "out"
    found = verify(out / "toy", trials_by_group(open_storage(default_url(out)), "toy", out))
    assert found.findings == () and found.paused == 9


def test_a_search_with_failures_and_second_tries_can_be_trusted(run):
    found = run(train=mended, space={RATE: Log(1e-4, 10.0)}, sampler="random", budget=Budget(trials=5))
    save_diff(found.out)  # as workers do: records of failure say which code failed

    def look():
        return verify(found.ledger.folder, trials_by_group(found.ledger._storage, "toy", found.out))

    assert look().findings == () and look().failed > 0
    (found.out / "mended").touch()
    found.ledger.reconcile(retry_failed=True)
    assert look().findings == () and look().failed == 0
    work(found.ledger, mended)
    assert look().findings == () and look().failed == 0


def tamper_value(s):
    record = json.loads(s.paths["paused"][0].read_text())
    columns = record["validation"] | {"val/nelbo": [value - 0.5 for value in record["validation"]["val/nelbo"]]}
    s.change(
        s.paths["paused"][0], validation=columns, metrics=record["metrics"] | {"val/nelbo": columns["val/nelbo"][-1]}
    )


def tamper_settings(s):
    entry = json.loads(s.entry(s.paths["complete"][0]).read_text())
    changed = entry | {"settings": entry["settings"] | {RATE: 0.001}}
    s.entry(s.paths["complete"][0]).write_text(json.dumps(changed))


def tamper_space(s):
    design = json.loads((s.folder / "design.json").read_text())
    design["declared"]["space"][RATE]["high"] = 0.5
    (s.folder / "design.json").write_text(json.dumps(design))


def tamper_trial(s):
    trials = s.told["topk"]
    number = next(n for n, trial in enumerate(trials) if trial.state.name == "COMPLETE")
    twin = copy.copy(trials[number])
    twin.number += 100
    trials.append(twin)


TAMPERINGS = {
    "its record was changed since the ledger was told of it": lambda s: s.change(s.paths["paused"][0], wall_time_s=1.0),
    "at step 4 its records say": tamper_value,
    "its val/nelbo is": lambda s: s.change(s.paths["complete"][0], metrics=SEED),
    "isn't the last of its validations": lambda s: s.change(s.paths["paused"][0], metrics=SEED),
    "it is paused, and has no metrics": lambda s: s.change(s.paths["paused"][0], metrics={}),
    "doesn't hash to its run hash": lambda s: s.change(s.paths["paused"][0], config={"seed": 0}),
    "it failed, and the ledger says otherwise": lambda s: s.change(
        s.paths["complete"][0], status="failed", reason="diverged"
    ),
    "the ledger has its result, and a record of it is gone": lambda s: s.paths["complete"][0].unlink(),
    "the ledger doesn't know it": lambda s: s.told.update(topk=[]),
    "the ledger says that it has other settings": tamper_settings,
    "its settings don't give the config that was trained": tamper_settings,
    "nothing says which trial this is": lambda s: s.entry(s.paths["paused"][0]).write_text("{half"),
    "its space or settings were changed since the search was made": tamper_space,
    "design.json: can't be read": lambda s: (s.folder / "design.json").unlink(),
    "a foreign folder": lambda s: shutil.copytree(s.paths["paused"][0].parent, s.folder / "c-0" / "seed-0-copy"),
    "the ledger has 2 results of it": tamper_trial,
    "runs compared: of different commits": lambda s: s.change(
        s.paths["paused"][0], provenance={"git_commit": "0" * 40}
    ),
}


@pytest.mark.parametrize("said", TAMPERINGS)
def test_tampering_is_found(search, said):
    TAMPERINGS[said](search)
    found, lines = search.find()
    assert not found.trusted
    assert [line for line in lines if said in line], lines


def test_data_that_differ_here_are_found(search, monkeypatch):
    monkeypatch.setattr("core.data.inputs.fingerprint", lambda config: "markov:other")
    found, lines = search.find()
    assert not found.trusted and [line for line in lines if "the data here are markov:other" in line], lines


def test_without_a_ledger_that_is_said(search):
    found = verify(search.folder, None)
    assert [finding.place for finding in found.findings] == ["ledger"] and not found.trusted


def test_what_another_search_trained_further_is_a_note(search):
    path = search.paths["paused"][0]
    (path.parents[1] / "search-abcdef.json").write_text(search.entry(path).read_text())
    search.change(path, wall_time_s=1.0)
    found, lines = search.find()
    assert lines == [] and ["another search trained it too" in str(finding) for finding in found.findings] == [True]


def test_records_of_a_former_space_are_a_note(search):
    for path in search.folder.glob("*/search-*.json"):
        path.rename(path.with_name("search-abcdef.json"))
    search.told.update(topk=[], bias_balanced=[])
    found, lines = search.find()
    assert lines == [] and {finding.text[:17] for finding in found.findings} == {"of another design"}
