"""The report in a browser, as its readers use it: clicks, keys, phone, dark, paper."""

from dataclasses import replace

import numpy as np
import pytest

from analysis.report.html import write_report
from analysis.study import Study
from analysis.verdicts.judge import judge
from tests.analysis.conftest import make_design
from tests.browser import needs_chromium, opened

EVIL = "<script>alert(1)</script>"
pytestmark = [needs_chromium, pytest.mark.service]


@pytest.fixture(scope="module")
def report(tmp_path_factory, request):
    from tests.analysis.conftest import make_record

    design = make_design(arms=4)
    design["arms"][2]["label"] = EVIL
    design["arms"][1]["label"] = "top-k 1, learning_rate 0.0003, expert_choice"
    effects = {"arm1": -0.3}
    found = [make_record(design, arm["name"], seed, effects.get(arm["name"], 0.0))
             for arm in design["arms"] for seed in design["seeds"]]  # fmt: skip
    for record in found:
        record.config["model"] = {"top_k": 2 if record.arm_hash == "hash-control" else 1}
        load = np.random.default_rng(record.seed).dirichlet(np.ones(8), (4, 10, 2))
        record.routing["load_by_timestep"] = load.tolist()
    found[-1] = replace(found[-1], status="failed", reason=f"out of memory {EVIL}", metrics={}, validation={}, curve={})
    study = Study.of(found)
    path = tmp_path_factory.mktemp("report") / "report.html"
    write_report(study, judge(study), path)
    return path


def test_a_reader_clicks_through_it(report) -> None:
    with opened(viewport={"width": 1100, "height": 900}) as page:
        page.goto(report.as_uri())
        tabs = page.get_by_role("tab")
        assert tabs.all_inner_texts() == ["Verdict", "Arms", "Curves", "Routing", "Runs", "Provenance", "How to cite"]
        assert (
            page.locator("section:visible").count() == 1 and page.get_by_text("better", exact=True).first.is_visible()
        )

        page.get_by_role("tab", name="Curves").click()
        assert page.url.endswith("#curves")
        lines = page.locator("#curves .plot g[aria-label=line] path")
        assert lines.count() == 4
        page.locator("#curves .legend button").nth(2).click()  # the legend hides a line, and shows it again
        assert (
            lines.count() == 3
            and page.locator("#curves .legend button").nth(2).get_attribute("aria-pressed") == "false"
        )
        page.locator("#curves .legend button").nth(2).click()
        assert lines.count() == 4 and page.locator("#curves .legend button").nth(2).inner_text() == EVIL
        page.get_by_label("each seed").check()
        assert lines.count() == 4 + 4 * 6 - 1  # one run failed
        page.locator("#curves .controls select").select_option("MaxVio")
        assert "MaxVio" in page.locator("#curves .plot svg").get_attribute("aria-label")
        page.locator("#curves summary").first.click()
        page.locator("#curves figure table").wait_for()
        assert page.locator("#curves figure table tbody tr").count() == 4 * 3
        page.locator("#curves .legend button").first.click()
        assert page.locator("#curves figure table tbody tr").count() == 3 * 3

        page.get_by_role("tab", name="Routing").click()
        slider = page.get_by_label("timestep t")
        heat = page.locator("#routing figure[data-chart=timestep] svg")
        before = heat.first.inner_html(), heat.first.get_attribute("aria-label")
        slider.press("ArrowRight")
        assert slider.get_attribute("aria-valuetext") == "0.6 to 0.7"
        assert (heat.first.inner_html(), heat.first.get_attribute("aria-label")) != before
        page.locator("#routing figure[data-chart=timestep] select").select_option(EVIL)
        assert heat.count() == 2
        page.locator("#routing figure[data-chart=timestep] summary").click()
        page.locator("#routing figure[data-chart=timestep] table").wait_for()
        assert page.locator("#routing figure[data-chart=timestep] tbody tr").count() == 2 * 4
        heat.first.locator("rect").nth(9).hover()
        assert (
            "layer 1, expert 1:" in page.locator("#routing figure[data-chart=timestep] > .drawn > output").inner_text()
        )


def test_runs_are_filtered_sorted_and_compared_with_the_control(report) -> None:
    with opened() as page:
        page.goto(f"{report.as_uri()}#runs")
        shown, rows = page.locator("#filters output"), page.locator("#all-runs tbody tr:visible")
        assert shown.inner_text() == "24 of 24 runs"
        page.get_by_label("Status").select_option("failed")
        assert shown.inner_text() == "1 of 24 runs" and "out of memory <script>" in rows.first.inner_text()
        page.get_by_label("Status").select_option("")
        page.get_by_label("Filter", exact=True).fill("expert_choice top_k")
        assert shown.inner_text() == "6 of 24 runs"
        rows.first.locator("summary").click()
        assert rows.first.locator("li").inner_text() == "model.top_k 2 → 1"
        page.get_by_role("button", name="NELBO").click()
        values = [float(row.locator("td").nth(3).inner_text()) for row in rows.all()]
        assert values == sorted(values)
        page.get_by_role("button", name="NELBO").click()
        assert [float(row.locator("td").nth(3).inner_text()) for row in rows.all()] == values[::-1]


def test_it_is_read_by_keyboard(report) -> None:
    with opened() as page:
        page.goto(report.as_uri())
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
        page.keyboard.press("Enter")  # it leads to the page that is open
        assert page.url.endswith("#content") and page.locator("section:visible").get_attribute("id") == "verdict"
        page.get_by_role("tab", name="Runs").click()
        page.locator(".skip").focus()
        page.keyboard.press("Enter")
        assert page.locator("section:visible").get_attribute("id") == "runs"
        page.get_by_role("tab", name="Verdict").click()
        page.keyboard.press("End")
        assert page.evaluate("document.activeElement.textContent") == "How to cite"
        assert page.locator("section:visible").get_attribute("id") == "cite"
        page.keyboard.press("ArrowRight")  # round the end
        assert page.locator("[aria-selected=true]").inner_text() == "Verdict"
        page.keyboard.press("ArrowRight")
        page.keyboard.press("ArrowRight")
        for _ in range(3):  # into the page: select, each seed, the first line of the legend
            page.keyboard.press("Tab")
        page.keyboard.press("Space")
        assert page.locator("#curves .legend button").first.get_attribute("aria-pressed") == "false"


def test_paper_and_readers_without_scripts_get_all_of_it(report) -> None:
    with opened() as page:
        page.goto(report.as_uri())
        page.evaluate("dispatchEvent(new Event('beforeprint'))")
        page.emulate_media(media="print")
        assert page.locator("section:visible").count() == 7 and not page.locator("nav").is_visible()
        assert page.locator("#curves .plot svg").is_visible() and page.pdf()[:4] == b"%PDF"
    with opened(java_script_enabled=False) as page:
        page.goto(report.as_uri())
        assert page.locator("section:visible").count() == 7 and page.locator("figure svg:visible").count() >= 6


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone_nothing_is_wider_than_the_screen_and_all_can_be_read(report, scheme) -> None:
    with opened(viewport={"width": 375, "height": 800}, color_scheme=scheme) as page:
        page.goto(report.as_uri())
        for tab in page.get_by_role("tab").all():
            tab.click()
            assert page.evaluate("document.documentElement.scrollWidth") == 375
            assert page.locator("section:visible").evaluate(CONTRAST) == []
        assert page.locator("#verdict").evaluate("node => [...node.querySelectorAll('svg, figure')].filter("
                                                 "each => !each.closest('[aria-label]'))") == []  # fmt: skip


# Texts whose contrast with what is behind them is below 4.5 (WCAG 2.2 AA).
CONTRAST = """section => {
  const rgb = text => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map(v => v / 255).map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
  const behind = node => { for (; node; node = node.parentElement) {
    const colour = rgb(getComputedStyle(node).backgroundColor);
    if (colour.length < 4 || colour[3] > 0) return colour; } return [255, 255, 255]; };
  return [...section.querySelectorAll('*')].filter(node => !node.closest('svg') && node.checkVisibility()
    && [...node.childNodes].some(child => child.nodeType === 3 && child.textContent.trim())).filter(node => {
      const [one, two] = [light(rgb(getComputedStyle(node).color)), light(behind(node))];
      return (Math.max(one, two) + .05) / (Math.min(one, two) + .05) < 4.5;
    }).map(node => node.outerHTML.slice(0, 120));
}"""
