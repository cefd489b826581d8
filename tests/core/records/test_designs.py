"""Designs of this version, of earlier and of later ones, and of damaged files."""

import json
from typing import Any

import pytest

from core.records.designs import SCHEMA, Design, SearchDesign, StudyDesign, first_stage_data, parse
from core.runtime.json_files import DamagedFileError
from tests.analysis.conftest import make_design

ADAPTIVE = {"fixed": 6, "first": 4, "block": 2, "share": 0.1, "futile": 0.05, "bought": {"control": 4, "arm1": 2}}
TARGET = {"parameters": 7e9, "tokens": 2e13, "sparsity": 8.0, "granularity": 1.0}
DECODERS = {
    "task": "dyck", "examples": 8, "decode_seeds": 1, "length": 16, "margin": None, "control": "one",
    "ways": [{"name": "one", "label": "one", "settings": {"length": 16}}],
}  # fmt: skip


def newest(**changes: Any) -> dict[str, Any]:
    return json.loads(json.dumps(Design.from_json(make_design()).to_json())) | changes


def test_a_design_survives_its_file() -> None:
    design = Design.from_json(newest(adaptive=ADAPTIVE, ladder={"targets": {"7B": TARGET}}, decoders=DECODERS))
    assert Design.from_json(json.loads(json.dumps(design.to_json()))) == design
    assert design.to_json()["schema"] == SCHEMA and "confirms" not in design.to_json()


def test_designs_without_a_schema_get_what_versions_of_then_did() -> None:
    content = make_design()
    lacking = {name: value for name, value in content.items() if name not in ("overrides", "command", "base")}
    design = Design.from_json(lacking)
    assert (design.overrides, design.command, design.base, design.devices, design.contrasts) == ((), "", "", 1, ())
    assert design.arms[0].notes == () and design.arms[0].likelihood is None


def test_cells_are_those_that_were_bought() -> None:
    fixed, adaptive = Design.from_json(newest()), Design.from_json(newest(adaptive=ADAPTIVE))
    assert len(list(fixed.cells)) == len(fixed.arms) * len(fixed.seeds)
    assert [(arm.name, seed) for arm, seed in adaptive.cells if arm.name == "arm1"] == [("arm1", 0), ("arm1", 1)]


def test_what_a_later_version_adds_is_kept_and_its_kinds_are_designs() -> None:
    later = newest(kind="mine", colour="red")
    design = parse(later)
    assert isinstance(design, Design) and design.kind == "mine" and design.to_json() == later


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema": SCHEMA + 1}, "schema 2, and this version reads up to 1: update it"),
        ({"schema": "new"}, "schema: expected whole number"),
        ({"margin": float("inf")}, "margin: expected number <="),
        ({"kind": "\udcff", "\udcff": 1}, "a name that is no text|kind"),
        ({"alpha": 1}, "alpha: expected number < 1.0"),
        ({"alpha": "x"}, "alpha: expected number, got text"),
        ({"arms": []}, "arms: expected list of length >= 1"),
        ({"arms": [{"name": "control"}]}, r"arms\[0\]: it lacks label"),
        ({"seeds": [True]}, r"seeds\[0\]: expected whole number, got bool"),
        ({"metric": "no/such"}, "unknown metric 'no/such'"),
        ({"control": "nobody"}, "the control 'nobody' is none of the arms"),
        ({"contrasts": [["arm1", "nobody"]]}, "contrasts name an arm that there isn't"),
        ({"adaptive": {"fixed": 6}}, "adaptive: it lacks first"),
        ({"kind": "search"}, "it lacks"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_is_wrong_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DamagedFileError, match=message):
        StudyDesign.from_json(newest(**changes))


def test_the_design_of_another_kind_of_study_is_refused() -> None:
    with pytest.raises(DamagedFileError, match="of a study of another kind, 'ablation'"):
        SearchDesign.from_json(newest())


def test_the_data_of_a_first_stage_are_known_of_a_design_that_is_damaged_otherwise() -> None:
    arm = newest()["arms"][0] | {"first_data_fingerprint": "text:1"}
    assert first_stage_data({"arm": arm["name"], "design": newest(arms=[arm], metric="no/such", schema=99)}) == "text:1"
    assert first_stage_data({"arm": arm["name"], "design": {"arms": "?"}}) is None
