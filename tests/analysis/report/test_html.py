import base64
import hashlib
import json
import re
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser

import numpy as np
import pytest
from scipy import stats

from analysis.formatting import correlation, fixed, number, percent, pvalue, ratio, signed, size
from analysis.report.files import as_markdown
from analysis.report.html import render, write_report
from analysis.study import Study
from analysis.table import tables_on
from analysis.verdicts.judge import judge
from tests.analysis.conftest import make_design
from tests.analysis.pages import charts_of, on_terminal, without_scripts

EVIL = "<script>alert(1)</script>&\"'$x$"


def page(found) -> str:
    study = Study.of(found)
    return render(study, judge(study))


def test_it_asks_for_nothing_outside_itself(records_of) -> None:
    class Links(HTMLParser):
        asked: list[str] = []

        def handle_starttag(self, tag, attrs) -> None:
            self.asked += [
                v for k, v in attrs if k in ("src", "href", "xlink:href", "srcset") and not v.startswith(("#", "data:"))
            ]

    html = without_scripts(page(records_of(make_design())))
    links = Links()
    links.feed(html)
    assert links.asked == []
    assert not re.search(r"@import|url\((?!#)", html)


def test_ids_are_unique_and_every_reference_is_met(records_of) -> None:
    html = without_scripts(page(records_of(make_design(arms=9))))
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'href="#([^"]+)"', html)) | set(re.findall(r"url\(#([^)]+)\)", html)) <= set(ids)


def test_untrusted_text_stays_text(records_of) -> None:
    design = make_design()
    design["arms"][1]["label"] = EVIL
    design["question"] = EVIL
    found = records_of(design)
    found[-1] = replace(found[-1], status="failed", reason=EVIL, metrics={})
    html = page(found)
    assert html.count("<script") == 5 and "<script" not in without_scripts(html)
    assert without_scripts(html).count("&lt;script&gt;") > 4
    assert EVIL in json.dumps(charts_of(html), ensure_ascii=False).replace('\\"', '"')


def test_equal_records_give_equal_bytes_in_any_order(tmp_path, records_of) -> None:
    found = records_of(make_design())
    html, study = page(found), Study.of(found)
    assert html == page(found[::-1])
    write_report(study, judge(study), tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text() == html
    assert (tmp_path / "report.html").stat().st_size < 2_000_000


def test_failed_and_missing_runs_are_on_the_page(records_of) -> None:
    found = records_of(make_design())[:-1]
    found[3] = replace(found[3], status="failed", reason="out of memory", metrics={}, validation={}, curve={})
    html = page(found)
    assert "seed 3 failed: out of memory" in html and "1 missing" in html and "not recorded" in html


def test_a_study_with_nothing_finished_is_still_a_page(records_of) -> None:
    nothing = {"metrics": {}, "curve": {}, "validation": {}, "expert_load": {"step": [], "load": []}}
    found = [replace(r, status="failed", reason="x", **nothing) for r in records_of(make_design())]
    assert "No verdict yet" in page(found)


def test_the_terminal_table_fits_eighty_columns(records_of) -> None:
    study = Study.of(records_of(make_design(), {"arm1": -0.3}))
    text = on_terminal(judge(study))
    assert max(map(len, text.splitlines())) <= 80
    assert "better" in text and "arm1 label" in text and "Does it matter?" in text


def test_nine_arms_with_long_names_fit_eighty_columns_uncut(records_of) -> None:
    design = make_design(arms=9)
    names = {arm["name"]: f"load_balancing_weight 0.0{n}, z_loss_weight 0.001" for n, arm in enumerate(design["arms"])}
    design |= {"arms": [arm | {"label": names[arm["name"]]} for arm in design["arms"]]}
    text = on_terminal(judge(Study.of(records_of(design, {"arm1": -0.3}))))
    lines = [line.rstrip() for line in text.splitlines()]
    assert max(map(len, lines)) <= 80
    assert set(names.values()) <= set(lines)


def test_experts_by_timestep_are_drawn_for_the_first_seed_that_all_arms_finished(records_of) -> None:
    found = records_of(make_design())
    for record in found[1:]:
        load = np.random.default_rng(record.seed).dirichlet(np.ones(8), (4, 10, 2))
        load[0, 0, 1] = np.nan  # no masked token at the first timesteps
        record.routing["load_by_timestep"] = load.tolist()
    text = page(found)
    assert "Experts by timestep" in text and "at the end of seed 1" in text and "layer 3, masked" in text


def test_numbers_for_people() -> None:
    assert (number(2.61533), number(None)) == ("2.615", "")
    assert (signed(-0.00731), signed(0.5)) == ("−0.0073", "+0.5")
    assert (pvalue(0.000012, 0.05), pvalue(0.0312, 0.05)) == ("<.0001", "0.031")


@pytest.mark.parametrize("alpha", [0.05, 0.1, 0.01, 0.0125])
def test_a_p_value_is_shown_on_its_own_side_of_alpha(alpha: float) -> None:
    near = [pvalue(value, 0.05) for value in (0.0497, 0.0503, 0.04999996)]
    assert near == ["0.0497", "0.05", "0.04999996"]
    for value in (*np.linspace(0.9 * alpha, 1.1 * alpha, 401), alpha, np.nextafter(alpha, 0), 3e-5, 0.0, 1.0):
        told = pvalue(value, alpha)
        assert (float(told.removeprefix("<")) < alpha) == (value < alpha), (value, told)
    assert pvalue(5e-5, 2e-5) == "5e-05"  # where alpha is smaller still, "<.0001" would say nothing


def test_effects_are_shown_on_their_own_side_of_the_margin_and_of_nothing() -> None:
    assert (signed(0.0996, 0.1), signed(-0.0996, 0.1), signed(0.0996)) == ("+0.0996", "−0.0996", "+0.1")
    assert (signed(0.1004, 0.1), size(-0.0996, 0.1), signed(-0.0)) == ("+0.1", "0.0996", "0")
    assert (fixed(-0.004, 2), fixed(-0.014, 2), fixed(0.004, 2, sign=True)) == ("0.00", "−0.01", "0.00")
    assert correlation(-0.001) == "0.00"
    assert (ratio(1.0), ratio(0.998), ratio(1.0004), ratio(0.84)) == ("1.00", "0.998", "1.0004", "0.84")
    assert (percent(0.0004), percent(-0.0004), percent(0.0), percent(0.021)) == ("+0.04%", "−0.04%", "0.0%", "+2.1%")


@pytest.mark.parametrize("alpha", [0.1, 0.05])
def test_intervals_have_the_level_of_the_design_and_say_so(records_of, alpha: float) -> None:
    factors = [{"key": k, "label": k, "levels": [0, 1]} for k in ("a", "b")]
    design = make_design(arms=4, alpha=alpha, factors=factors, contrasts=[["arm1", "arm2"]])
    for place, arm in enumerate(design["arms"]):
        arm["settings"] = {"a": place // 2, "b": place % 2}
    found = Study.of(records_of(design, {design["arms"][1]["name"]: -0.1}))
    judgement = judge(found)
    effect = judgement.comparisons[0].rows[1].effect
    half = stats.t.ppf(1 - alpha / 2, effect.n - 1) * effect.sd / effect.n**0.5
    assert effect.high - effect.estimate == pytest.approx(half)
    others = [judgement.found["interactions"].contrasts[0].effect, judgement.found["contrasts"][0].effect]
    assert all(e.high - e.estimate == pytest.approx(half / effect.sd * e.sd) for e in others)
    written = [as_markdown(table) for table in tables_on(judgement.tables, "file")]
    texts = [unescape(page(list(found.cells.values()))), on_terminal(judgement, 200), *written]
    right, wrong = (f"{100 * (1 - level):g} % " for level in (alpha, 0.15 - alpha))
    assert all(right in text for text in texts[:3]) and not any(wrong in text for text in texts)


def test_its_policy_lets_its_own_scripts_run_and_no_other(records_of) -> None:
    html = page(records_of(make_design()))
    bodies = re.findall(r"<script>(.*?)</script>\n", html, flags=re.S)
    hashes = {base64.b64encode(hashlib.sha256(body.encode()).digest()).decode() for body in bodies}
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', html)[1].replace("&#39;", "'")
    assert set(re.findall(r"'sha256-([^']+)'", policy)) == hashes and len(hashes) == 4
    assert policy.startswith("default-src 'none';") and "'unsafe-inline'" not in policy.split("style-src")[0]


def test_pages_are_those_that_have_something_to_show(records_of) -> None:
    found = records_of(make_design())
    shown = re.findall(r'<section id="(\w+)"', page(found))
    assert shown == ["verdict", "arms", "curves", "routing", "runs", "provenance", "cite"]
    bare = [replace(r, curve={}, validation={}, expert_load={}, routing={}) for r in found]
    assert re.findall(r'<section id="(\w+)"', page(bare)) == ["verdict", "arms", "runs", "provenance", "cite"]


def test_two_thousand_runs_make_a_page_of_less_than_five_megabytes(records_of) -> None:
    found = records_of(make_design(arms=20, seeds=100))
    html = page(found)
    assert html.count("data-status=") == 2000 and len(html.encode()) < 5_000_000
