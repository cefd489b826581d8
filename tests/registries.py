"""Registries as they were, once a test is over: what it added is known to no later test of the process."""

import contextlib
from collections.abc import Iterator
from typing import Any

from core.registry import Registry


@contextlib.contextmanager
def kept(*registries: Registry[Any]) -> Iterator[None]:
    """Inside, entries may be added to registries; afterwards they have those that they had, and what was cached is stale."""
    before = [(registry, registry.entries()) for registry in registries]
    try:
        yield
    finally:
        for registry, entries in before:
            registry._entries = {entry.name: entry for entry in entries}
            # A number that no registry had or will have: caches go by it.
            Registry.additions += 1
            registry.version = Registry.additions
