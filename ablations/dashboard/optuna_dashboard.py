"""optuna-dashboard below the page of a search: its application on the same storage, behind the same token, read-only."""

import functools
import importlib.util
import warnings
from collections.abc import Callable
from typing import Any

from optuna.storages import BaseStorage

MISSING = (
    "optuna-dashboard isn't installed: pip install 'moe-diffusion-ablations[dashboard]' adds every trial's page here."
)


def installed() -> bool:
    """True if the optional extra is there."""
    return importlib.util.find_spec("optuna_dashboard") is not None


def application(storage: Callable[[], BaseStorage | None]) -> Callable[[], Any]:
    """Factory of the WSGI application; None before the storage could be opened, or without the extra."""

    @functools.cache
    def build(opened: BaseStorage) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it says of each of its optional parts that it is experimental
            from optuna_dashboard import wsgi

            return wsgi(opened)

    def give() -> Any:
        opened = storage()
        return build(opened) if opened is not None and installed() else None

    return give
