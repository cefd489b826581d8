"""A report's page in parts: its own scripts, its figures on paper, and the data of its interactive ones."""

import io
import json
import re
from typing import Any

from rich.console import Console

from analysis.report.terminal import terminal_table
from analysis.verdicts.answer import Judgement

SCRIPT = re.compile(r"<script>.*?</script>\n", re.S)
DATA = re.compile(r'<script type="application/json" id="charts">(.*?)</script>', re.S)
POLICY = re.compile(r"script-src .*?(?=; style-src)")


def without_scripts(html: str) -> str:
    """The page as a reader has it: without scripts, their hashes and the figures' data."""
    return POLICY.sub("script-src", DATA.sub("", SCRIPT.sub("", html)))


def on_terminal(judgement: Judgement, width: int = 80) -> str:
    """The report on a terminal of so many columns."""
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(terminal_table(judgement))
    return console.export_text()


def charts_of(html: str) -> Any:
    """The interactive figures' data, as the page's scripts read it."""
    found = DATA.search(html)
    assert found is not None
    return json.loads(found[1])
