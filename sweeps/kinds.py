"""Kinds of study: the operations of each, imported when they are used, as they load Optuna."""

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from optuna.storages import BaseStorage

from sweeps.runs.liveness import Workplace
from sweeps.runs.queue import Queue
from sweeps.runs.record_checks import Verification
from sweeps.runs.status import StudyStatus, TasksOf, no_tasks
from sweeps.search.spec import Search  # noqa: F401  (registers its kind)
from sweeps.storage.retrying import PatientStorage
from sweeps.studies.ablation import Ablation
from sweeps.studies.study import STUDY_KINDS


class Operations(Protocol):
    """The functions of a kind's module."""

    def plan_of(self, content: Mapping[str, Any], /) -> Any:
        """The plan that its `to_json` wrote."""
        ...

    def queue(self, plan: Any, out: Path, storage: PatientStorage, workplace: Workplace = ..., /) -> Queue[Any]:
        """The queue of a plan. Raises UserError when the storage's study belongs to another folder of runs."""
        ...

    def demand(self, plan: Any, out: Path, storage: PatientStorage | None, *, retry_failed: bool) -> tuple[int, int]:
        """Number of waiting runs (0 = a search, which draws them) and of workers of use at once.

        With a storage it is brought in line with the records first; without, the records alone are asked.
        """
        ...

    def status(
        self,
        study: str,
        out: Path,
        url: str | None = None,
        /,
        *,
        storage: PatientStorage | None = None,
        tasks_of: TasksOf = no_tasks,
    ) -> StudyStatus[Any]:
        """Status of a study. url: of its storage; None: its newest submission's, else the default one's. storage: the same,
        opened before. tasks_of: asks its launchers.

        Raises UserError when nothing of it has been run there.
        """
        ...

    def verify(self, study: str, out: Path, storage: BaseStorage | None, /) -> dict[str, Verification]:
        """Check every record: the study's own, and those of what belongs to it, by name. storage: None: there is none."""
        ...

    def folders(self, study: str, /) -> tuple[str, ...]:
        """Names of the folders of a study and of what belongs to it. The last one holds the records that are compared."""
        ...


def operations_of(kind: str) -> Operations:
    """The operations of a kind of study by its name; those of planned runs for a kind that isn't registered here."""
    return operations_in(module_of(kind))


def module_of(kind: str) -> str:
    """The name of the module with a kind's operations."""
    return STUDY_KINDS[kind if kind in STUDY_KINDS else Ablation.kind].operations


def operations_in(module: str) -> Operations:
    """The operations that a module, named by its place among packages, has for its kind of study."""
    return cast(Operations, importlib.import_module(module))


if TYPE_CHECKING:
    # For mypy alone, which holds the modules to the protocol: they load Optuna's samplers.
    from sweeps.runs import operations
    from sweeps.search import operations as search_operations  # as above

    _runs: Operations = operations
    _searches: Operations = search_operations
