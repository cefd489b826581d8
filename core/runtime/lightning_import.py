"""Lightning, imported without the libraries that it only asks for: 2.3 CPU seconds instead of 6.2.

    from core.runtime.lightning_import import lightning

The modules of this project have it from here alone, lest another import comes first. torchmetrics, which Lightning imports,
loads transformers, scipy.signal and matplotlib for metrics that nobody uses here; Lightning loads torch._dynamo to recognise
compiled modules. The former stay unknown to torchmetrics in this process, the latter comes when something is compiled.
"""

import contextlib
import functools
import sys
import threading
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError
from types import ModuleType
from typing import Any

__all__ = ["lightning"]

UNUSED = ("transformers", "scipy", "matplotlib")
DYNAMO = "torch._dynamo"


@contextlib.contextmanager
def _without_unused() -> Iterator[None]:
    """Inside, Lightning and torchmetrics take the unused libraries for missing. Other threads and libraries don't."""
    from lightning_utilities.core import imports

    version, find_spec, thread = imports._version, imports.find_spec, threading.get_ident()

    def hides(name: str) -> bool:
        return threading.get_ident() == thread and name.split(".")[0].lower() in UNUSED

    def visible_version(name: str) -> str:
        if hides(name):
            raise PackageNotFoundError(name)
        return version(name)

    imports._version = visible_version  # type: ignore[assignment]
    imports.find_spec = lambda name, *rest: None if hides(name) else find_spec(name, *rest)
    try:
        yield
    finally:
        imports._version, imports.find_spec = version, find_spec
        for cached in (imports.package_available, imports.module_available):
            cached.cache_clear()


class _Compiled(type):
    """Has those instances that torch._dynamo.OptimizedModule has, which there are none of before that is loaded."""

    def __instancecheck__(cls, instance: Any) -> bool:
        dynamo = sys.modules.get(DYNAMO)
        return dynamo is not None and isinstance(instance, dynamo.OptimizedModule)


def _disable(function: Callable[..., Any], *rest: Any, **options: Any) -> Callable[..., Any]:
    """torch._dynamo.disable, asked for once the function is called with that loaded: before, nothing is compiled."""

    @functools.cache
    def disabled() -> Callable[..., Any]:
        chosen: Callable[..., Any] = sys.modules[DYNAMO].disable(function, *rest, **options)
        return chosen

    @functools.wraps(function)
    def called(*arguments: Any, **named: Any) -> Any:
        return (disabled() if DYNAMO in sys.modules else function)(*arguments, **named)

    return called


@contextlib.contextmanager
def _without_dynamo() -> Iterator[None]:
    """Inside, torch._dynamo is a stand-in with the two names that Lightning needs."""
    if DYNAMO in sys.modules:
        yield
        return
    stand_in = ModuleType(DYNAMO)
    stand_in.OptimizedModule = _Compiled("OptimizedModule", (), {})  # type: ignore[attr-defined]
    stand_in.disable = _disable  # type: ignore[attr-defined]
    sys.modules[DYNAMO] = stand_in
    try:
        yield
    finally:
        if sys.modules.get(DYNAMO) is stand_in:
            del sys.modules[DYNAMO]


if "lightning" not in sys.modules:
    import torch  # noqa: F401  (before the stand-in is there)

    try:
        with _without_dynamo(), _without_unused():
            import lightning
    except Exception:  # a version that needs more; what is half imported goes, and it is imported as it is
        for name in [name for name in sys.modules if name.split(".")[0] in ("lightning", "torchmetrics")]:
            del sys.modules[name]
import lightning  # noqa: E402
import lightning.pytorch.strategies  # noqa: E402
