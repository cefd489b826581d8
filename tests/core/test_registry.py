"""Registries find the modules of a folder, and refuse names with a hint."""

import sys
from dataclasses import dataclass
from typing import Any

import pytest

from core.errors import UserError
from core.registry import Registry, load, module_names


@dataclass(frozen=True)
class Kind:
    name: str
    implementation: Any = None


@pytest.fixture(params=[True, False], ids=["light", "heavy"])
def registry(request, tmp_path, monkeypatch) -> Registry[Kind]:
    """A registry of a folder with a module for the kind "mine", and one with the implementation of "known"."""
    name = f"kinds_{request.param}".lower()
    folder = tmp_path / name
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "mine.py").write_text("from tests.core import test_registry as t\nt.current.add(t.Kind('mine', int))\n")
    (folder / "shared.py").write_text("def known():\n    return 3\n")
    monkeypatch.syspath_prepend(tmp_path)
    made = Registry("section.kind", [Kind("known", f"{name}.shared:known")], folder=name, light=request.param)
    monkeypatch.setattr(sys.modules[__name__], "current", made, raising=False)
    yield made
    for module in [module for module in sys.modules if module.split(".")[0] == name]:
        del sys.modules[module]


def test_a_module_of_the_folder_adds_its_kind(registry: Registry[Kind]) -> None:
    assert set(registry) == {"known", "mine"} and len(registry) == 2  # shared.py names no kind
    assert registry.light or registry.folder + ".mine" not in sys.modules  # not imported until it is looked up
    assert registry["mine"].implementation is int and load(registry["known"].implementation)() == 3


def test_an_unknown_name_is_refused_with_the_nearest(registry: Registry[Kind]) -> None:
    with pytest.raises(UserError, match="section.kind: unknown 'knwon': did you mean known"):
        registry["knwon"]
    assert "knwon" not in registry and [] not in registry


def test_a_name_is_one_entrys_unless_the_same_code_adds_it_again(registry: Registry[Kind]) -> None:
    before = registry.version
    registry.add(Kind("other", dict))
    first = registry.version
    registry.add(Kind("other", dict))
    assert len({before, first, registry.version}) == 3
    with pytest.raises(UserError, match="there is a 'other' already"):
        registry.add(Kind("other", list))


def test_a_folder_that_cant_be_imported_says_so_each_time(registry: Registry[Kind], tmp_path) -> None:
    if registry.light:
        (tmp_path / registry.folder / "zz.py").write_text("raise ValueError('no')")
        module_names.cache_clear()
        for _ in range(2):
            with pytest.raises(ValueError, match="no"):
                len(registry)
