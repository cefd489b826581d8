"""Ways of decoding compared: by known answers, and by simulated models and prompts whose truth is known."""

from dataclasses import asdict, replace

import numpy as np
import pytest
from scipy import stats

from analysis.formatting import percent
from analysis.report.files import sheets
from analysis.report.html import render
from analysis.study import Study
from analysis.verdicts.decoding import Way, cochran, decoding, mcnemar, sheet, shift
from analysis.verdicts.judge import judge
from core.records.decoded import Decoded
from tests.analysis.conftest import make_design
from tests.analysis.pages import without_scripts


def answers(models: int, prompts: int, gain: float, rng: np.random.Generator) -> np.ndarray:
    """Right or not of two ways, the second better by `gain`: models and prompts each prefer one of them by chance.

    Returns (S, N, 2).
    """
    skill = 0.5 + 0.1 * rng.standard_normal((models, 1)) + 0.2 * rng.standard_normal((1, prompts))
    liking = 0.05 * rng.standard_normal((models, 1)) + 0.1 * rng.standard_normal((1, prompts))
    chance = np.stack([skill, skill + liking + gain], axis=-1).clip(0, 1)
    return (rng.random(chance.shape) < chance).astype(float)


def test_one_model_is_a_t_test_over_prompts_and_mcnemars_test() -> None:
    rng = np.random.default_rng(0)
    difference = rng.integers(-1, 2, size=(1, 40)).astype(float)
    found, known = shift(difference), stats.ttest_1samp(difference[0], 0)
    assert found.pvalue() == pytest.approx(known.pvalue)
    assert (found.low, found.high) == pytest.approx(tuple(known.confidence_interval()))
    gained, lost = (difference == 1).sum(), (difference == -1).sum()
    assert mcnemar(difference) == pytest.approx(stats.chi2.sf((gained - lost) ** 2 / (gained + lost), 1))


def test_copies_of_a_model_say_no_more_than_one_of_these_models() -> None:
    difference = np.random.default_rng(1).integers(-1, 2, size=(1, 60)).astype(float)
    assert mcnemar(np.repeat(difference, 5, axis=0)) == pytest.approx(mcnemar(difference))
    right = (np.random.default_rng(2).random((1, 50, 3)) < (0.4, 0.5, 0.6)).astype(float)
    assert cochran(np.repeat(right, 4, axis=0)) == cochran(right)


def test_two_ways_are_cochrans_sign_test() -> None:
    right = np.zeros((1, 30, 2))
    right[0, :9, 0], right[0, 9:12, 1] = 1, 1
    assert cochran(right) == pytest.approx(stats.binomtest(9, 12).pvalue, abs=0.02)


def test_ways_that_never_differ_are_not_told_apart() -> None:
    same = np.ones((3, 10, 2))
    assert mcnemar(same[..., 1] - same[..., 0]) == 1.0 and cochran(same) == 1.0
    found = shift(same[..., 1] - same[..., 0])
    assert found.estimate == found.low == found.high == 0 and found.pvalue() == 1.0 and found.p_equivalence(0.01) == 0.0


def test_error_rates_hold_where_models_and_prompts_are_clusters() -> None:
    rng, repeats = np.random.default_rng(3), 600
    rejected, naive, covered, seen = 0, 0, 0, 0
    for _ in range(repeats):
        difference = np.diff(answers(6, 80, 0.0, rng))[..., 0]
        found = shift(difference)
        rejected += found.pvalue() < 0.05
        naive += stats.ttest_1samp(difference.ravel(), 0).pvalue < 0.05
        covered += found.low <= 0 <= found.high
        seen += shift(np.diff(answers(6, 80, 0.15, rng))[..., 0]).pvalue() < 0.05
    assert rejected / repeats < 0.07 and covered == repeats - rejected
    assert naive / repeats > 0.12  # answers taken for independent
    assert seen / repeats > 0.8


def test_cochrans_level_holds_where_prompts_are_clusters() -> None:
    rng, rejected = np.random.default_rng(4), 0
    for repeat in range(200):
        chance = (0.5 + 0.3 * rng.standard_normal((1, 40, 3))).clip(
            0, 1
        )  # of each prompt and way, the same in all models
        right = (rng.random((5, 40, 3)) < chance).astype(float)
        rejected += cochran(right, permutations=199, seed=repeat) < 0.05
    assert rejected <= 20  # of 200 at 5 %: more by chance in 1 of 700


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
    design = {**study.design, "decoders": study.design["decoders"] | {"margin": None}}
    without = decoding(replace(study, design=design, decoded=unsure))
    assert "Fewest" not in without.headline and "“way" not in without.headline


def test_the_report_and_the_files_show_it_escaped(study: Study) -> None:
    judgement = judge(study)
    assert judgement.headline == judgement.decoding.headline  # type: ignore[union-attr]
    page = render(study, judgement)
    assert "Decoding of dyck: 100 held-out prompts" in page and "&lt;b&gt;" in page
    assert "<script>" not in without_scripts(page)
    assert 'id="frontier-' in page
    assert [each.name for each in sheets(judgement)][-1] == "decoding"
    assert judgement.to_dict()["decoding"]["ways"][1]["verdict"] == "worse"
    table = sheet(decoding(study))
    assert len(table.shown) == len(table.exact) == 4 and len(table.head) == len(table.shown[0])


def test_answers_of_other_settings_or_weights_are_left_out(study: Study) -> None:
    one = study.decoded["control", 0]["one"]
    assert one.answers(one)
    for change in ({"weights": "other"}, {"settings": {"length": 8}}, {"examples": 50}):
        assert not one.answers(Decoded(**asdict(one) | change))
    assert not Decoded(**asdict(one) | {"reason": "lost"}).answers(one)


def test_other_arms_are_judged_where_none_of_the_controls_models_was_decoded(study: Study) -> None:
    way = Way(
        "other", "same", "way same", shift(np.ones((3, 4))), shift(np.zeros((3, 4))), 1.0, 1.0, 0.0, 8.0, 2.0, 1.0, 3,
        "equivalent within the margin",
    )  # fmt: skip
    lost = replace(way, arm="control", right=None, effect=None, p_holm=None, calls=None, n=0, verdict="no verdict")
    found = replace(decoding(study), ways=(lost, way))
    assert "all 1 equivalent within the margin" in found.headline and "Fewest" not in found.headline


def test_a_margin_and_an_effect_beside_it_are_not_rounded_across_each_other(study: Study) -> None:
    found = decoding(study)
    found = replace(found, margin=0.0125, ways=tuple(
        replace(way, effect=replace(way.effect, estimate=0.01246)) if way.name == "same" else way for way in found.ways
    ))  # fmt: skip
    assert "(equivalent within the margin of 1.25%)" in found.headline
    assert "Differences below 1.25% are declared not to matter" in sheet(found).caption
    assert sheet(found).shown[2][2].startswith("+1.2% ")
    assert percent(0.00996, margin=0.01) == "+0.996%" and percent(-0.0104, margin=0.01) == "−1.04%"
