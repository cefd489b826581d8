"""Operations whose connection breaks before or after they are done: each is done once."""

import errno
import logging
import os

import optuna
import pytest
import sqlalchemy.exc
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.storages import InMemoryStorage
from optuna.trial import TrialState, create_trial

from core.runtime.retry import Patience
from sweeps.storage.outages import outage
from sweeps.storage.retrying import (
    OWNER,
    ForwardingStorage,
    PatientStorage,
    ProxiedStorage,
    StorageLostError,
    StorageRefusedError,
)


def lost(text="server closed the connection unexpectedly"):
    return sqlalchemy.exc.OperationalError("SELECT 1", {}, Exception(text))


def wrapped(error):
    outer = StorageInternalError("An exception is raised during the commit.")
    outer.__cause__ = error
    return outer


class Breaking(ForwardingStorage):
    """Breaks once on the named operation: before it is done, or after."""

    def __init__(self, inner):
        super().__init__(inner)
        self.plan = []

    def _do(self, name, *arguments, **named):
        if self.plan and self.plan[0][0] == name:
            _, when = self.plan.pop(0)
            if when == "after":
                super()._do(name, *arguments, **named)
            raise wrapped(lost())
        return super()._do(name, *arguments, **named)


@pytest.fixture(autouse=True)
def hasty(monkeypatch):
    monkeypatch.setattr(Patience, "sleep", lambda self, seconds: self.check())


@pytest.fixture
def broken():
    return Breaking(InMemoryStorage())


@pytest.fixture
def patient(broken):
    return PatientStorage(broken, "postgresql://h/db", Patience(limit_s=60))


@pytest.fixture
def study(patient):
    return optuna.create_study(storage=patient, study_name="a")


def waiting(study, patient):
    return patient.create_new_trial(study._study_id, create_trial(state=TrialState.WAITING, user_attrs={"k": 1}))


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_trial_is_created_once(study, patient, broken, when):
    broken.plan = [("create_new_trial", when)]
    trial_id = waiting(study, patient)
    [trial] = study.get_trials()
    assert (trial._trial_id, trial.state, trial.user_attrs) == (trial_id, TrialState.WAITING, {"k": 1})
    broken.plan = [("create_new_trial", when)]
    asked = study.ask()  # takes the one that waits
    assert asked._trial_id == trial_id
    broken.plan = [("create_new_trial", when)]
    assert study.ask().number == 1
    assert len(study.get_trials()) == 2


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_claim_is_ours_whether_its_answer_came_or_not(study, patient, broken, when):
    trial_id = waiting(study, patient)
    broken.plan = [("set_trial_state_values", when)]
    assert patient.set_trial_state_values(trial_id, TrialState.RUNNING)
    assert patient.get_trial(trial_id).state == TrialState.RUNNING
    assert not patient.set_trial_state_values(trial_id, TrialState.RUNNING)


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_claim_that_another_made_meanwhile_is_theirs(study, patient, broken, when):
    other = PatientStorage(broken._inner, "postgresql://h/db", Patience())
    trial_id = waiting(study, patient)

    class Beaten(Breaking):
        def _do(self, name, *arguments, **named):
            if self.plan and self.plan[0][0] == name:
                assert other.set_trial_state_values(trial_id, TrialState.RUNNING)
            return super()._do(name, *arguments, **named)

    mine = PatientStorage(Beaten(broken._inner), "postgresql://h/db", Patience())
    mine._inner.plan = [("set_trial_state_values", when)]
    assert not mine.set_trial_state_values(trial_id, TrialState.RUNNING)
    assert other.get_trial(trial_id).system_attrs[OWNER] == other._owner


def test_a_result_is_told_once_and_another_result_is_refused(study, patient, broken):
    trial_id = waiting(study, patient)
    patient.set_trial_state_values(trial_id, TrialState.RUNNING)
    broken.plan = [("set_trial_state_values", "after")]
    assert patient.set_trial_state_values(trial_id, TrialState.COMPLETE, [1.5])
    assert patient.get_trial(trial_id).value == 1.5
    with pytest.raises(UpdateFinishedTrialError):
        patient.set_trial_state_values(trial_id, TrialState.COMPLETE, [1.5])

    second = waiting(study, patient)
    broken._inner.set_trial_state_values(second, TrialState.FAIL)
    broken.plan = [("set_trial_state_values", "before")]
    with pytest.raises(UpdateFinishedTrialError):
        patient.set_trial_state_values(second, TrialState.COMPLETE, [2.0])


def test_mistakes_are_not_waited_out(study, patient):
    with pytest.raises(KeyError):
        patient.get_trial(77)
    assert outage(wrapped(sqlalchemy.exc.DataError("INSERT", {}, Exception("value too long")))) is None
    assert outage(wrapped(lost("no such table: trials"))) is None
    assert outage(wrapped(lost('FATAL: password authentication failed for user "ada"'))) is None
    assert outage(wrapped(lost("the database system is starting up"))) == "the database system is starting up"


@pytest.mark.parametrize(
    ("code", "waits"),
    {
        "08006": True,  # connection failure
        "25006": True,  # read-only
        "25P03": True,  # idle in a transaction
        "40001": True,  # serialization
        "40P01": True,  # deadlock
        "53100": True,  # disk full
        "53200": True,  # out of memory
        "53300": True,  # too many connections
        "55P03": True,  # a lock not given in time
        "57014": True,  # cancelled, or a statement's timeout
        "57P01": True,  # shut down
        "57P02": True,  # crashed
        "57P03": True,  # starting up
        "58030": True,  # input or output
        "28P01": False,  # wrong password
        "3D000": False,  # no such database
        "42P01": False,  # no such table
        "42501": False,  # no right
        "XX001": False,  # data corrupted
        "22001": False,  # a value too long
    }.items(),
)
def test_the_sqlstate_says_what_is_waited_for_and_the_rest_is_one_line(patient, broken, code, waits, monkeypatch):
    psycopg = pytest.importorskip("psycopg")
    said = psycopg.errors.lookup(code)("said in any language\nDETAIL: of postgresql://ada:hunter2@h/db")
    of = next(kind for kind in ("OperationalError", "ProgrammingError", "InternalError", "DataError")
              if isinstance(said, getattr(psycopg, kind)))  # fmt: skip
    error = wrapped(getattr(sqlalchemy.exc, of)("SELECT 1", {}, said))
    assert bool(outage(error)) is waits
    monkeypatch.setattr(broken, "_do", lambda *_, **__: (_ for _ in ()).throw(error))
    with pytest.raises(
        StorageLostError if waits else StorageRefusedError, match="said in any language DETAIL"
    ) as raised:
        PatientStorage(broken, "postgresql://h/db", Patience(limit_s=0)).get_all_studies()
    assert "hunter2" not in str(raised.value) and "\n" not in str(raised.value)


def test_an_aborted_transaction_is_judged_by_what_aborted_it():
    psycopg = pytest.importorskip("psycopg")
    aborted = sqlalchemy.exc.InternalError("SELECT 1", {}, psycopg.errors.InFailedSqlTransaction("aborted"))
    aborted.__context__ = sqlalchemy.exc.OperationalError("SELECT 1", {}, psycopg.errors.QueryCanceled("timeout"))
    assert outage(wrapped(aborted)) == "timeout"
    pending = sqlalchemy.exc.PendingRollbackError("Can't reconnect until invalid transaction is rolled back.")
    pending.__context__ = lost()
    assert outage(wrapped(pending)) == "server closed the connection unexpectedly"


@pytest.mark.parametrize(("number", "waits"), [(errno.ESTALE, True), (errno.EIO, True), (errno.EROFS, False)])
def test_a_file_server_that_is_away_is_waited_for(patient, broken, number, waits, monkeypatch):
    error = OSError(number, os.strerror(number), "/runs/journal.log")
    monkeypatch.setattr(broken, "_do", lambda *_, **__: (_ for _ in ()).throw(error))
    with pytest.raises(StorageLostError if waits else StorageRefusedError, match="/runs/journal.log"):
        PatientStorage(broken, "journal:/runs/journal.log", Patience(limit_s=0)).get_all_studies()


def test_an_outage_is_logged_without_the_password_and_ends_with_the_patience(broken, caplog):
    storage = PatientStorage(broken, "postgresql://ada:***@h/db", Patience(limit_s=0))
    broken.plan = [("get_all_studies", "before")]
    with pytest.raises(StorageLostError, match=r"postgresql://ada:\*\*\*@h/db: server closed the connection"):
        storage.get_all_studies()
    patient = PatientStorage(broken, "postgresql://ada:***@h/db", Patience())
    broken.plan = [("get_all_studies", "before")] * 3
    with caplog.at_level(logging.WARNING):
        assert patient.get_all_studies() == []
    assert len(caplog.messages) == 4
    assert (
        outage(lost("connection to postgresql://ada:hunter2@h failed")) == "connection to postgresql://ada:***@h failed"
    )


def test_a_proxy_says_at_once_that_its_database_is_away(broken):
    proxied = ProxiedStorage(broken)
    broken.plan = [("get_all_studies", "before")]
    with pytest.raises(RuntimeError, match="^storage unreachable: server closed"):
        proxied.get_all_studies()
    with pytest.raises(KeyError):
        proxied.get_trial(77)
