"""The page in a browser, and the command that serves it."""

import json
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from ablations.dashboard.poller import Poller
from ablations.dashboard.server import Page, Server
from core.records.designs import FILE_NAME as DESIGN_FILE
from tests.ablations.dashboard.half_done import Sweep, begin
from tests.ablations.shell import ablate, mistake
from tests.browser import needs_chromium, opened

EVIL = "<script>window.evil = 1</script><img src=x onerror='window.evil = 2'>"
DECLARATION = """
from tests.sweeps.conftest import declare
from sweeps.spec import Factor

ablation = declare(factors=(Factor("objective.load_balancing_weight", (0.01, 0.0, 0.001)),), seeds=range(8), margin=0.1)
"""


@contextmanager
def served(sweep: Sweep) -> Iterator[str]:
    """The address of a page of a sweep that is looked at all the time."""
    poller = Poller(sweep.planned.study_name, sweep.out, None, "ablate report toy.py")
    with Server(Page(poller.state)) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        poller.start()
        yield server.url
        server.shutdown()
        poller.stop()


@needs_chromium
@pytest.mark.service
def test_the_page_follows_a_sweep_without_being_loaded_again(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("ablations.dashboard.poller.PAUSE_S", 0.1)
    monkeypatch.setattr("ablations.dashboard.poller.REST", 0.0)
    sweep = begin(tmp_path)
    design = json.loads(json.dumps(sweep.planned.design.to_json()))
    design["arms"][1]["label"] = EVIL
    (sweep.folder / DESIGN_FILE).write_text(json.dumps(design))
    sweep.finish(11)
    sweep.finish(1, f"RuntimeError: {EVIL}")
    sweep.train(3)
    with served(sweep) as url, opened(viewport={"width": 1100, "height": 900}) as page:
        page.goto(url)
        page.wait_for_selector("#chart-loss .line")
        assert "token" not in page.url and page.evaluate("document.cookie") == ""
        page.evaluate("window.kept = 1")
        summary, rows = page.locator("#summary"), page.locator("#families tbody tr")
        assert "11 of 24 runs finished, 1 in training, 1 failed" in summary.inner_text()
        assert rows.count() == 2 and "4 of 8" in rows.nth(0).inner_text()
        assert "however often this page is looked at" in page.inner_text("#verdict-note")
        assert "may not be looked at before all seeds are in" in page.inner_text("#verdict-note")
        assert EVIL in page.inner_text("#arms") and EVIL in page.inner_text("#failure-rows")
        assert page.locator("main script, main img").count() == 0 and page.evaluate("window.evil") is None

        sweep.finish(5)
        page.locator("#summary", has_text="16 of 24 runs finished").wait_for()
        page.locator("#families tbody tr", has_text="5 of 8").first.wait_for()
        assert page.evaluate("window.kept") == 1

        button = page.locator("#legend button").nth(1)
        assert button.get_attribute("aria-pressed") == "true"
        lines = page.locator("#chart-validation .line").count()
        button.focus()
        page.keyboard.press("Space")
        assert button.get_attribute("aria-pressed") == "false"
        assert page.locator("#chart-validation .line").count() == lines - 1 == 2
        assert EVIL not in page.locator("#chart-validation svg").get_attribute("aria-label")


@needs_chromium
@pytest.mark.service
def test_it_fits_a_phone_in_the_dark(tmp_path) -> None:
    sweep = begin(tmp_path)
    sweep.finish(12)
    sweep.train(2)
    narrow = {"viewport": {"width": 375, "height": 800}, "color_scheme": "dark", "reduced_motion": "reduce"}
    with served(sweep) as url, opened(**narrow) as page:
        page.goto(url)
        page.wait_for_selector("#chart-loss .line")
        assert page.evaluate("document.documentElement.scrollWidth") == 375
        ink, ground = (
            page.evaluate(f"getComputedStyle(document.body).{name}") for name in ("color", "backgroundColor")
        )
        assert contrast(ink, ground) > 7 and contrast(ground, "rgb(255, 255, 255)") > 7
        for where in ("#progress-note", "#checked", "#legend .value", "#keys", ".note", ".waiting, .better, .worse"):
            colour = page.eval_on_selector(where, "element => getComputedStyle(element).color")
            assert contrast(colour, ground) > 4.5, where
        assert page.evaluate(
            "[...document.querySelectorAll('svg.chart')].every((svg) => svg.getAttribute('aria-label'))"
        )


def contrast(one: str, two: str) -> float:
    """WCAG's contrast ratio of two CSS colours "rgb(r, g, b)"."""

    def luminance(colour: str) -> float:
        parts = [int(part) / 255 for part in colour[4:-1].split(",")]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    light, dark = sorted((luminance(one), luminance(two)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_the_command_serves_until_it_is_interrupted(tmp_path, monkeypatch) -> None:
    (tmp_path / "toy.py").write_text(DECLARATION)
    mistake(ablate("dashboard", "toy.py", cwd=tmp_path), "nothing of toy has been run")
    begin(tmp_path / "runs").finish(2)
    asked = []

    def once(server: Server, poll_interval: float) -> None:
        def ask() -> None:
            asked.append(urllib.request.urlopen(server.url.split("?")[0], timeout=10))

        def refused() -> None:
            with pytest.raises(urllib.error.HTTPError, match="403"):
                ask()
            asked.append(server.server_port)

        client = threading.Thread(target=refused)
        client.start()
        server.handle_request()
        client.join()
        raise KeyboardInterrupt

    monkeypatch.setattr(Server, "serve_forever", once)
    monkeypatch.setenv("SSH_CONNECTION", "10.0.0.1 5000 10.0.0.2 22")
    done = ablate("dashboard", "toy.py", cwd=tmp_path)
    (port,) = asked
    address, tunnel = done.stdout.splitlines()
    assert done.returncode == 130 and address.startswith(f"toy: http://127.0.0.1:{port}/?token=")
    assert f"ssh -N -L {port}:127.0.0.1:{port} " in tunnel and tunnel.endswith("@10.0.0.2")
    assert done.stderr.strip() == "the page of toy has ended; whatever trains goes on"
