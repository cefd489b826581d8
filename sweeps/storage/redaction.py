"""Storage URLs may hold passwords, and messages keys: what of them is fit to be seen."""

import os
import re

SECRET_NAMES = re.compile(r"(?i)([?&;]|\b)((?:ssl)?password|passwd|pwd|secret|token|api_?key)=[^&;\s]*")


def safe_url(url: str) -> str:
    """The URL fit for a log: passwords masked, in the authority and in the query."""
    masked = re.sub(r"(://[^/@:\s]*):.*@", r"\1:***@", url)
    return SECRET_NAMES.sub(r"\1\2=***", masked)


def without_secrets(message: str) -> str:
    """A message as one line fit for a log: at most 300 characters, the environment's W&B keys masked."""
    line = " ".join(message.split())
    for name, value in os.environ.items():
        if name.startswith("WANDB_") and "KEY" in name and value:
            line = line.replace(value, "***")
    return line[:300]
