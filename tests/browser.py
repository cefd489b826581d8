"""A real browser for pages of this project: Debian's chromium, driven from Python."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PATIENCE_MS = 60_000  # a busy machine's

needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")


@contextmanager
def opened(**options: Any) -> Iterator[Any]:
    """A blank page of a fresh profile (playwright's `Page`) that has asked this machine alone, without a complaint.

    options: of playwright's `Browser.new_page`, such as viewport, color_scheme, java_script_enabled.
    Raises AssertionError for any message of the console's, any uncaught error, and any request to elsewhere.
    """
    from playwright.sync_api import sync_playwright

    complaints: list[str] = []
    with sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"], timeout=PATIENCE_MS
        )
        page = browser.new_page(**options)
        page.set_default_timeout(PATIENCE_MS)
        page.on("console", lambda message: complaints.append(f"console: {message.text[:500]}"))
        page.on("pageerror", lambda error: complaints.append(f"error: {error}"))
        page.on("request", lambda request: complaints.extend(_elsewhere(request.url)))
        yield page
        browser.close()
    assert not complaints, complaints


def _elsewhere(url: str) -> list[str]:
    parts = urlsplit(url)
    own = parts.scheme in ("file", "data", "blob", "about") or parts.hostname in ("127.0.0.1", "localhost")
    return [] if own else [f"a request left: {url}"]
