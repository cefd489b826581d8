"""A report's page in parts: its own scripts, its figures on paper, and the data of its interactive ones."""

import json
import re
from typing import Any

SCRIPT = re.compile(r"<script>.*?</script>\n", re.S)
DATA = re.compile(r'<script type="application/json" id="charts">(.*?)</script>', re.S)
POLICY = re.compile(r"script-src .*?(?=; style-src)")


def without_scripts(html: str) -> str:
    """The page as a reader has it: without scripts, their hashes and the figures' data."""
    return POLICY.sub("script-src", DATA.sub("", SCRIPT.sub("", html)))


def charts_of(html: str) -> Any:
    """The interactive figures' data, as the page's scripts read it."""
    found = DATA.search(html)
    assert found is not None
    return json.loads(found[1])
