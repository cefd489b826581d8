"""Plugins: identified by their source, imported once where they are trusted, copied, and refused in a line."""

import re
import sys
from pathlib import Path

import pytest
import yaml

from core import plugins
from core.config.loading import build
from core.config.model import ROUTERS
from core.config.run import config_hash, content_hash, get_field, known_keys, to_dict, to_yaml
from core.errors import UserError
from core.plugins import Plugin, digest, named, plugin_at
from tests.registries import kept

ROUTER = """
from core.config.model import ROUTERS, RouterKind

NAME = "{name}"
ROUTERS.add(RouterKind(NAME, "core.model.routing:TopKRouter"))
"""


@pytest.fixture(autouse=True)
def alone(tmp_path, monkeypatch):
    """No plugin is known or trusted, and registries are as before after the test."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home"))
    monkeypatch.delenv(plugins.TRUSTED, raising=False)
    monkeypatch.delenv(plugins.COPIES, raising=False)
    monkeypatch.setattr(plugins, "_modules", {})
    monkeypatch.setattr(sys, "path", list(sys.path))
    with kept(ROUTERS):
        yield


@pytest.fixture
def router(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(ROUTER.format(name="mine"))
    return path


def trusted(path: Path) -> str:
    plugin = plugin_at(path)
    plugins.trust([plugin])
    return str(plugin)


def test_a_config_imports_its_plugins_before_it_is_checked(router):
    with pytest.raises(UserError, match="model.router.kind: Invalid value 'mine'"):
        build({"model.router.kind": "mine"})
    config = build({"plugins": [trusted(router)], "model.router.kind": "mine"})
    assert config.model.router.kind == "mine" and config.plugins == (str(plugin_at(router)),)
    assert build(to_dict(config)) == config


def test_a_config_without_plugins_is_written_and_hashed_as_before():
    config = build({})
    assert "plugins" not in to_dict(config)
    assert content_hash(to_dict(config)) == content_hash(to_dict(config) | {"plugins": []})


def test_the_source_is_part_of_a_run_and_its_place_is_not(router, tmp_path):
    one = build({"plugins": [trusted(router)]})
    (tmp_path / "elsewhere").mkdir()
    moved = tmp_path / "elsewhere" / "mine.py"
    moved.write_text(router.read_text())
    assert config_hash(build({"plugins": [trusted(moved)]})) == config_hash(one) != config_hash(build({}))
    moved.write_text(router.read_text() + "SCALE = 2\n")
    assert plugin_at(moved).sha256 != plugin_at(router).sha256


def test_a_declaration_in_the_same_file_does_not_count(tmp_path):
    path = tmp_path / "question.py"
    path.write_text('SHARP = 0.5\nablation = dict(\n    question="?",\n    seeds=range(3),\n)\n')
    before = digest(path)
    path.write_text(
        'SHARP = 0.5\nablation = dict(\n    question="Is it better?",\n    seeds=range(8), margin=0.1,\n)\n'
    )
    assert digest(path) == before
    path.write_text(path.read_text().replace("0.5", "0.25"))
    assert digest(path) != before


def test_a_package_is_hashed_whole_and_imported_by_its_name(tmp_path):
    package = tmp_path / "my_parts_1"
    (package / "deep").mkdir(parents=True)
    (package / "__init__.py").write_text("from my_parts_1.deep import router\n")
    (package / "deep" / "__init__.py").write_text("")
    (package / "deep" / "router.py").write_text(ROUTER.format(name="deep"))
    config = build({"plugins": [trusted(package)], "model.router.kind": "deep"})
    assert config.model.router.kind == "deep"
    before = digest(package)
    (package / "deep" / "router.py").write_text(ROUTER.format(name="deeper"))
    assert digest(package) != before


def test_code_that_nobody_here_ran_is_not_imported(router):
    marker = router.parent / "ran"
    router.write_text(f"open({str(marker)!r}, 'w')\n")
    with pytest.raises(
        UserError, match=f"use the code of mine.py .hash {digest(router)}., which you haven't run before"
    ):
        build({"plugins": [str(plugin_at(router))]})
    assert not marker.exists()
    plugins.run(plugin_at(router))
    assert marker.exists()


def test_what_a_user_ran_is_trusted_by_later_processes(router, monkeypatch):
    plugins.run(plugin_at(router))
    monkeypatch.delenv(plugins.TRUSTED)
    monkeypatch.setattr(plugins, "_modules", {})
    ROUTERS._entries = {}  # as in a process that has imported nothing
    assert plugins.require([str(plugin_at(router))])


def test_launched_processes_use_the_copy_whatever_becomes_of_the_file(router, tmp_path, monkeypatch):
    written = [trusted(router)]
    plugins.copy(written, tmp_path / "study")
    plugins.copy(written, tmp_path / "study")  # again: as it was
    router.write_text(ROUTER.format(name="edited"))
    monkeypatch.delenv(plugins.TRUSTED)
    (tmp_path / "home").rename(tmp_path / "another home")
    with pytest.raises(UserError, match="which you haven't run before"):
        plugins.require(written)
    for name, value in plugins.variables(written, tmp_path / "study").items():
        monkeypatch.setenv(name, value)
    assert plugins.require(written) == tuple(written)
    assert "mine" in ROUTERS and "edited" not in ROUTERS


def test_a_changed_or_missing_file_is_told(router):
    written = trusted(router)
    router.write_text("# another\n")
    with pytest.raises(UserError, match="mine.py was changed since these runs were planned"):
        plugins.require([written])
    router.unlink()
    with pytest.raises(UserError, match="mine.py isn't there"):
        plugins.require([written])


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("x = 1\nimport no_such_module\n", "mine.py can't be imported, line 2: ModuleNotFoundError: No module named"),
        ("def f(:\n", "mine.py can't be imported: SyntaxError"),
        ("1 / 0\n", "mine.py can't be imported, line 1: ZeroDivisionError"),
        (ROUTER.format(name="topk"), "model.router.kind: there is a 'topk' already"),
    ],
)
def test_code_that_cannot_be_imported_is_refused_with_its_line(router, source, message):
    if "topk" in source:
        source = source.replace("core.model.routing:TopKRouter", "elsewhere:Mine")
    router.write_text(source)
    before = set(sys.modules)
    with pytest.raises(UserError, match=message):
        plugins.run(plugin_at(router))
    assert not [name for name in set(sys.modules) - before if name.startswith("plugin_mine")]


def test_plugins_are_named_by_path_or_package(router, tmp_path):
    assert named("mine.py", tmp_path) == plugin_at(router)
    assert named("json", tmp_path).path.name == "json"
    for wrong in ("nine.py", "no_such_package_1"):
        with pytest.raises(UserError, match=f"plugins: '{wrong}' is neither a file"):
            named(wrong, tmp_path)


def test_an_installed_package_offers_its_parts_by_entry_points(tmp_path, monkeypatch):
    package = tmp_path / "site" / "offered_1"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "routers.py").write_text(ROUTER.format(name="offered"))
    info = tmp_path / "site" / "offered_1-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: offered-1\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[ablate]\nrouters = offered_1.routers\n")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    config = build({"model.router.kind": "offered"})
    assert [Plugin.parse(each).path for each in config.plugins] == [package]


def test_plugins_are_a_list(router):
    with pytest.raises(UserError, match="plugins: a list of files and packages is needed"):
        build({"plugins": str(router)})


OPTIONS = """
from dataclasses import dataclass

from core.config.model import ROUTERS, RouterKind


@dataclass(frozen=True)
class Sharpness:
    temperature: float = 1.0
    mode: str = "soft"

    def __post_init__(self):
        if self.temperature <= 0:
            raise ValueError("temperature must be positive")


ROUTERS.add(RouterKind("sharp", "core.model.routing:TopKRouter", settings=Sharpness))
"""

KEY = "model.router.options"


@pytest.fixture
def sharp(tmp_path):
    path = tmp_path / "sharp.py"
    path.write_text(OPTIONS)
    return {"plugins": [trusted(path)], "model.router.kind": "sharp"}


def test_a_kind_has_typed_settings_of_its_own(sharp):
    config = build(sharp, {"model.router.options.temperature": 0.5})
    assert config.model.router.options == {"temperature": 0.5, "mode": "soft"}
    assert config.model.router.settings.temperature == 0.5
    assert build(to_dict(config)) == config and hash(config)
    assert build(yaml.safe_load(to_yaml(config))) == config
    assert config_hash(build(sharp)) == config_hash(build(sharp, {"model.router.options.temperature": 1.0}))
    assert config_hash(build(sharp)) != config_hash(config)
    assert known_keys()["model.router.options.temperature"] is float
    assert get_field(config, "model.router.options.temperature") == 0.5
    assert get_field(build({}), "model.router.options.temperature") is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({f"{KEY}.temprature": 1.0}, f"unknown config key '{KEY}.temprature': did you mean {KEY}.temperature"),
        ({f"{KEY}.temperature": "warm"}, f"{KEY}.temperature: 'warm' is text; expected a number"),
        ({f"{KEY}.temperature": -1.0}, f"{KEY}: temperature must be positive"),
        ({"model.router.kind": "topk", f"{KEY}.mode": "x"}, f"{KEY}.mode means nothing to model.router.kind=topk"),
        ({"objective.options.x": 1}, "unknown config key 'objective.options.x'"),
    ],
)
def test_settings_that_a_kind_does_not_have_are_refused(sharp, settings, message):
    with pytest.raises(UserError, match=re.escape(message)):
        build(sharp, settings)
