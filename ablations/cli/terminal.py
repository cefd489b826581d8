"""The console that commands print to, and JSON on standard output."""

import argparse
import json
import os
from collections.abc import Callable
from typing import Any

from rich.padding import Padding

from core.runtime.terminal import Terminal, line

WIDTH = 80  # columns, where there is no terminal


def console() -> Terminal:
    """Standard output, as wide as the terminal; elsewhere as $COLUMNS says, or 80 columns."""
    columns = os.environ.get("COLUMNS", "")
    elsewhere = int(columns) if columns.isdigit() and int(columns) else WIDTH
    return Terminal(width=None if os.isatty(1) else elsewhere)


def indented(text: str) -> Padding:
    """A paragraph whose every line is two columns in."""
    return Padding(line(text), (0, 0, 0, 2))


def show_json(content: Any) -> None:
    """Print one JSON document."""
    print(json.dumps(content, indent=2, allow_nan=False, default=str))


def show(content: Any, arguments: argparse.Namespace, print_content: Callable[[Any, Terminal], None]) -> int:
    """Print what a command found: as JSON with --json, else for people. Returns the exit status 0."""
    if arguments.json:
        show_json(content)
    else:
        print_content(content, console())
    return 0
