"""An Optuna storage that outlives its server: what fails because the server is away is tried again when it is back.

An operation that was sent when the connection broke may have been done or not. Setting an attribute twice does no
harm. The three others find out what happened: a new trial carries a token by which it is found again; a claim (WAITING to
RUNNING) is signed by whoever made it; a result that is there already is compared.
"""

import copy
import json
import random
import uuid
from collections import defaultdict
from collections.abc import Callable, Container, Sequence
from typing import TYPE_CHECKING, Any

from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState, create_trial

from core.errors import UserError
from core.runtime.retry import OutOfPatienceError, Patience
from sweeps.storage.outages import REFUSED, UNREACHABLE, outage, refusal

if TYPE_CHECKING:
    import sqlalchemy
    from optuna.storages import RDBStorage

TOKEN = "ablate:created_by"
OWNER = "ablate:claimed_by"
SIGNATURE_S = 3.0  # how long a claim may stay unsigned before it is taken for nobody's


class StorageLostError(OutOfPatienceError):
    """The storage didn't come back in time."""


class StorageRefusedError(UserError):
    """The storage says what waiting doesn't mend: its database is gone, a password was changed."""


def _forward(name: str) -> Any:
    def forward(self: "ForwardingStorage", *arguments: Any, **named: Any) -> Any:
        return self._do(name, *arguments, **named)

    return forward


class ForwardingStorage(BaseStorage):
    """A storage that passes every operation on to another one, through `_do`."""

    def __init__(self, inner: BaseStorage) -> None:
        self._inner = inner

    def _do(self, name: str, *arguments: Any, **named: Any) -> Any:
        return getattr(self._inner, name)(*arguments, **named)

    create_new_study = _forward("create_new_study")
    delete_study = _forward("delete_study")
    set_study_user_attr = _forward("set_study_user_attr")
    set_study_system_attr = _forward("set_study_system_attr")
    get_study_id_from_name = _forward("get_study_id_from_name")
    get_study_name_from_id = _forward("get_study_name_from_id")
    get_study_directions = _forward("get_study_directions")
    get_study_user_attrs = _forward("get_study_user_attrs")
    get_study_system_attrs = _forward("get_study_system_attrs")
    get_all_studies = _forward("get_all_studies")
    create_new_trial = _forward("create_new_trial")
    set_trial_param = _forward("set_trial_param")
    get_trial_id_from_study_id_trial_number = _forward("get_trial_id_from_study_id_trial_number")
    set_trial_state_values = _forward("set_trial_state_values")
    set_trial_intermediate_value = _forward("set_trial_intermediate_value")
    set_trial_user_attr = _forward("set_trial_user_attr")
    set_trial_system_attr = _forward("set_trial_system_attr")
    get_trial = _forward("get_trial")
    get_all_trials = _forward("get_all_trials")
    remove_session = _forward("remove_session")


class ProxiedStorage(ForwardingStorage):
    """Storage served by a proxy: it never waits (its clients do), and says an outage in words that they know.

    let_go: closes the database's connections, after an outage: who knows what they lead to.
    """

    def __init__(self, inner: BaseStorage, let_go: Callable[[], None] = lambda: None) -> None:
        super().__init__(inner)
        self._let_go = let_go

    def _do(self, name: str, *arguments: Any, **named: Any) -> Any:
        try:
            return super()._do(name, *arguments, **named)
        except Exception as error:
            if (reason := outage(error)) is not None:
                self._let_go()
                raise RuntimeError(f"{UNREACHABLE}: {reason}") from None
            if (reason := refusal(error)) is not None:
                raise RuntimeError(f"{REFUSED}: {reason}") from None
            raise


class PatientStorage(ForwardingStorage):
    """A storage that waits for its server, within its patience.

    name: of the storage, fit for a log. database: beneath the cache, which has to read every trial once.
    reopen: a fresh connection in place of a broken one, where the storage doesn't see to that itself.
    Raises StorageLostError when the server doesn't come back in time, StorageRefusedError for what doesn't pass.
    """

    def __init__(
        self,
        inner: BaseStorage,
        name: str,
        patience: Patience,
        *,
        database: "RDBStorage | None" = None,
        reopen: Callable[[BaseStorage], BaseStorage] | None = None,
    ) -> None:
        super().__init__(inner)
        self.name, self.patience = name, patience
        self.database, self._reopen = database, reopen
        self._owner = uuid.uuid4().hex

    def _do(self, name: str, *arguments: Any, **named: Any) -> Any:
        return self.patient(lambda again: getattr(self._inner, name)(*arguments, **named))

    def patient(self, action: Callable[[bool], Any]) -> Any:
        """Do it, again while the storage is away; action is given whether an attempt at it failed before."""
        try:
            return self.patience.call(action, self._trouble, self._mend)
        except OutOfPatienceError as error:
            raise StorageLostError(str(error)) from error.__cause__
        except Exception as error:
            if (reason := refusal(error)) is None:
                raise
            raise StorageRefusedError(f"storage {self.name}: {reason}") from error

    def _trouble(self, error: Exception) -> str | None:
        reason = outage(error)
        return reason and f"storage {self.name}: {reason}"

    def close(self) -> None:
        """Let go of the connection, where the storage has one to close."""
        if hasattr(self._inner, "close"):
            self._inner.close()

    def _mend(self) -> None:
        if self.database is not None:  # no connection is held while it waits: others may lack it, or it leads nowhere
            self.database.engine.dispose()
        if self._reopen is not None:
            self._inner = self._reopen(self._inner)

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        """As Optuna's; of some states, only trials of those are read from a database."""
        if states is not None and self.database is not None:
            database = self.database
            trials: list[FrozenTrial] = self.patient(lambda again: database.get_all_trials(study_id, deepcopy, states))
        else:
            trials = self._do("get_all_trials", study_id, deepcopy, states)
        return trials

    def waiting(self, study_id: int, keys: Sequence[str]) -> dict[int, dict[str, Any]]:
        """Some user attributes of a study's WAITING trials, by trial id.

        Of a database they alone are read: whole trials of a sweep of hundreds of runs take half a second.
        """
        if self.database is None:
            trials = self.get_all_trials(study_id, deepcopy=False, states=(TrialState.WAITING,))
            return {trial._trial_id: {key: trial.user_attrs.get(key) for key in keys} for trial in trials}
        engine = self.database.engine
        found: dict[int, dict[str, Any]] = defaultdict(dict)
        for trial_id, key, value in self.patient(lambda again: _waiting_rows(engine, study_id, keys)):
            found[trial_id][key] = json.loads(value)
        return found

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        trial = create_trial(state=TrialState.RUNNING) if template_trial is None else template_trial
        token = uuid.uuid4().hex
        signed = copy.copy(trial)
        signed.system_attrs = {**trial.system_attrs, TOKEN: token}

        def create(again: bool) -> int:
            if again:
                for known in self._inner.get_all_trials(study_id, deepcopy=False):
                    if known.system_attrs.get(TOKEN) == token:
                        return known._trial_id
            return self._inner.create_new_trial(study_id, signed)

        return int(self.patient(create))

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        """Compare and set: of several that set a WAITING trial to RUNNING, one is told True.

        Raises UpdateFinishedTrialError for a trial that ended otherwise.
        """
        if state == TrialState.RUNNING:
            return self._claim(trial_id)

        def end(again: bool) -> bool:
            try:
                return self._inner.set_trial_state_values(trial_id, state, values)
            except UpdateFinishedTrialError:
                if not again:
                    raise
                trial = self._inner.get_trial(trial_id)
                if trial.state != state or (values is not None and list(trial.values or ()) != list(values)):
                    raise
                return True  # the answer to the first attempt was lost on its way

        return bool(self.patient(end))

    def _claim(self, trial_id: int) -> bool:
        doubtful = False

        def claim(again: bool) -> bool:
            nonlocal doubtful
            doubtful = doubtful or again
            return self._inner.set_trial_state_values(trial_id, TrialState.RUNNING)

        if self.patient(claim):
            self.set_trial_system_attr(trial_id, OWNER, self._owner)
            return True
        return doubtful and self._was_mine(trial_id)

    def _was_mine(self, trial_id: int) -> bool:
        """True if a trial claimed while the connection broke is this process's; an unclaimed one becomes so."""
        for pause_s in (0.0, *[SIGNATURE_S / 10] * 10):
            self.patience.sleep(pause_s)  # whoever claimed it signs next
            if (owner := self._signature(trial_id)) is not None:
                return owner == self._owner
        self.set_trial_system_attr(trial_id, OWNER, self._owner)
        self.patience.sleep(random.uniform(0.2, 0.4))  # of several that sign, the last one has it
        return self._signature(trial_id) == self._owner

    def _signature(self, trial_id: int) -> str | None:
        trial = self.get_trial(trial_id)
        if trial.state.is_finished():
            raise UpdateFinishedTrialError(f"trial {trial.number} ended meanwhile")
        owner = trial.system_attrs.get(OWNER)
        return None if owner is None else str(owner)


def _waiting_rows(engine: "sqlalchemy.Engine", study_id: int, keys: Sequence[str]) -> Sequence[Any]:
    import sqlalchemy  # a journal needs none of it

    query = sqlalchemy.text(
        "SELECT t.trial_id, a.key, a.value_json FROM trials t JOIN trial_user_attributes a ON a.trial_id = t.trial_id "
        "WHERE t.study_id = :study AND t.state = 'WAITING' AND a.key IN :keys ORDER BY t.trial_id"
    ).bindparams(sqlalchemy.bindparam("keys", expanding=True))
    with engine.connect() as connection:
        return connection.execute(query, {"study": study_id, "keys": list(keys)}).all()
