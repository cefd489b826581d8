"""Storage URLs may hold passwords: what of them is fit to be seen."""

import re

SECRET_NAMES = re.compile(r"(?i)([?&;]|\b)((?:ssl)?password|passwd|pwd|secret|token|api_?key)=[^&;\s]*")


def safe_url(url: str) -> str:
    """The URL fit for a log: passwords masked, in the authority and in the query."""
    masked = re.sub(r"(://[^/@:\s]*):.*@", r"\1:***@", url)
    return SECRET_NAMES.sub(r"\1\2=***", masked)
