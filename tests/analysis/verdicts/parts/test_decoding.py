"""Decoding configurations compared by known answers."""

from dataclasses import asdict, replace

import numpy as np
import pytest

from analysis.formatting import percent
from analysis.report.html import render
from analysis.statistics.clustered import clustered_mean
from analysis.study import Study
from analysis.table import tables_on
from analysis.verdicts.judge import judge
from analysis.verdicts.parts.decoding import DecodingResult, decoding, table
from core.records.decoded import Decoded
from tests.analysis.conftest import make_design
from tests.analysis.pages import without_scripts


@pytest.fixture
def study(records_of) -> Study:
    """Six models that answer 100 prompts: “half” is right on a tenth fewer, “same” on as many."""
    design = make_design(arms=1, seeds=6) | {
        "decoders": {
            "task": "dyck", "examples": 100, "decode_seeds": 1, "length": 16, "margin": 0.1, "control": "one",
            "ways": [{"name": n, "label": f"way {n}", "settings": {"length": 16}} for n in ("one", "half", "same", "<b>")],
        }
    }  # fmt: skip
    found = Study.of(records_of(design))
    assert found is not None
    rng, answered = np.random.default_rng(5), {}
    for cell in found.cells:
        base = rng.random(100) < 0.6
        fewer = base & (rng.random(100) < 0.7)
        marks = {"one": base, "half": fewer, "same": base}
        answered[cell] = {
            name: Decoded(
                name, {"length": 16}, "dyck", 100, "w", ["".join("01"[int(x)] for x in right)],
                calls=16 if name == "one" else 8, length=16, seconds=2.0,
            )
            for name, right in marks.items()
        } | {"<b>": Decoded("<b>", {"length": 16}, "dyck", 100, "w", reason="ValueError: <script>")}  # fmt: skip
    return Study(found.design, found.cells, found.set_aside, found.unreadable, answered)


def test_verdicts_are_of_models_and_prompts_and_name_the_cheapest_way_without_a_loss(study: Study) -> None:
    found = decoding(study)
    ways = {way.name: way for way in found.ways}
    assert ways["one"].verdict == "control" and ways["half"].verdict == "worse"
    assert ways["same"].verdict == "equivalent within the margin"
    assert ways["same"].tokens_per_call == 2 and ways["one"].tokens_per_call == 1 and ways["same"].ms == 20.0
    assert ways["half"].effect and -0.25 < ways["half"].effect.estimate < -0.1
    assert ways["<b>"].verdict == "no verdict" and "6 models failed: ValueError" in ways["<b>"].notes[0]
    assert found.missing == 6 and "“way same” (equivalent within the margin of 10%), 2 tokens a call." in found.headline


def test_no_way_is_named_for_a_loss_that_was_not_detected(study: Study) -> None:
    """Two of three answers lost by one model in three: no difference is detected, and nothing is said to lose nothing."""
    rng, unsure = np.random.default_rng(3), {}
    for (arm, seed), ways in study.decoded.items():
        [right] = ways["one"].right
        lost = [mark == "1" and not (seed % 3 == 0 and rng.random() < 0.6) for mark in right]
        unsure[arm, seed] = ways | {"half": replace(ways["half"], right=["".join("01"[one] for one in lost)], calls=2)}
    found = decoding(replace(study, decoded=unsure))
    half = next(way for way in found.ways if way.name == "half")
    assert half.verdict == "no detectable difference at this resolution" and half.effect.estimate < -0.1
    assert "“way half”" not in found.headline and "“way same” (equivalent" in found.headline
    design = replace(study.design, decoders=replace(study.design.decoders, margin=None))
    without = decoding(replace(study, design=design, decoded=unsure))
    assert "Fewest" not in without.headline and "“way" not in without.headline


def test_the_report_and_the_files_show_it_escaped(study: Study) -> None:
    judgement = judge(study)
    assert judgement.headline == judgement.found["decoding"].headline  # type: ignore[union-attr]
    page = render(study, judgement)
    assert "Decoding of dyck: 100 held-out prompts" in page and "&lt;b&gt;" in page
    assert "<script>" not in without_scripts(page)
    assert 'id="frontier-' in page
    assert [each.name for each in tables_on(judgement.tables, "file")][-1] == "decoding"
    assert judgement.to_dict()["decoding"]["ways"][1]["verdict"] == "worse"
    shown = table(decoding(study))
    assert len(shown.rows) == len(shown.exact) == 4 and len(shown.head("file")) == len(shown.texts("file")[0])


def test_answers_of_other_settings_or_weights_are_left_out(study: Study) -> None:
    one = study.decoded["control", 0]["one"]
    assert one.is_of(one)
    for change in ({"weights": "other"}, {"settings": {"length": 8}}, {"examples": 50}):
        assert not one.is_of(Decoded(**asdict(one) | change))


def test_other_arms_are_judged_where_none_of_the_controls_models_was_decoded(study: Study) -> None:
    right, effect = clustered_mean(np.ones((3, 4))), clustered_mean(np.zeros((3, 4)))
    words = "equivalent within the margin"
    way = DecodingResult("other", "same", "way same", right, effect, 1.0, 1.0, 0.0, 8.0, 2.0, 1.0, 3, words)
    lost = replace(way, arm="control", right=None, effect=None, p_holm=None, calls=None, n=0, verdict="no verdict")
    found = replace(decoding(study), ways=(lost, way))
    assert "all 1 equivalent within the margin" in found.headline and "Fewest" not in found.headline


def test_a_margin_and_an_effect_beside_it_are_not_rounded_across_each_other(study: Study) -> None:
    found = decoding(study)
    found = replace(found, margin=0.0125, ways=tuple(
        replace(way, effect=replace(way.effect, estimate=0.01246)) if way.name == "same" else way for way in found.ways
    ))  # fmt: skip
    assert "(equivalent within the margin of 1.25%)" in found.headline
    assert "Differences below 1.25% are declared not to matter" in table(found).caption
    assert table(found).texts("file")[2][2].startswith("+1.2% ")
    assert percent(0.00996, margin=0.01) == "+0.996%" and percent(-0.0104, margin=0.01) == "−1.04%"
