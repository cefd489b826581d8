"""Kinds of study: what launchers need of each, imported when it is used, as it loads Optuna."""

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, cast

from core.config.run import RunConfig
from core.records.design import StudyDesign
from sweeps.runs.liveness import Workplace
from sweeps.runs.queue import Queue
from sweeps.storage.retrying import PatientStorage
from sweeps.studies.plan import Sweep

MODULES = {"ablation": "sweeps.runs.operations", "search": "sweeps.search.operations"}


class AnyPlan(Protocol):
    """The resolved plan of a study of any kind. sweep: the plan that run folders, records and W&B know it by."""

    @property
    def name(self) -> str: ...
    @property
    def size(self) -> str: ...
    @property
    def design(self) -> StudyDesign: ...
    @property
    def kind(self) -> str: ...
    @property
    def study_name(self) -> str: ...
    @property
    def devices(self) -> int: ...
    @property
    def sweep(self) -> Sweep: ...
    @property
    def configs(self) -> list[RunConfig]: ...
    def to_json(self) -> dict[str, Any]: ...


class Operations(Protocol):
    """The functions of a kind's module."""

    def plan_of(self, content: Mapping[str, Any], /) -> Any:
        """The plan that its `to_json` wrote."""
        ...

    def queue(self, plan: Any, out: Path, storage: PatientStorage, workplace: Workplace = ..., /) -> Queue[Any]:
        """The queue of a plan. Raises UserError when the storage's study belongs to another folder of runs."""
        ...

    def demand(self, plan: Any, out: Path, storage: PatientStorage | None, *, retry_failed: bool) -> tuple[int, int]:
        """How many runs wait (0 = a search, which draws them), and how many workers may be of use at once.

        With a storage it is brought in line with the records first; without, the records alone are asked.
        """
        ...


def operations_of(kind: str) -> Operations:
    """The operations of a kind of study by its name."""
    return cast(Operations, importlib.import_module(MODULES[kind]))
