"""Text from others becomes one harmless line."""

import io
import logging

from rich.table import Table
from rich.text import Text

from core.runtime.printable import clean, log_to_stderr, one_line
from core.runtime.terminal import Terminal, line

HOSTILE = "a\x1b[2Jb\u202ec\u2066d\re\nf\udc80[red]g"


def test_a_value_is_one_line_and_a_paragraph_keeps_its_lines() -> None:
    assert one_line(HOSTILE) == "a\\x1b[2Jb\\u202ec\\u2066d\\re\\nf\\udc80[red]g"
    assert clean("a\tb\n\x07") == "a\tb\n\\x07"
    assert one_line("ü → 漢字 \U0001f600") == "ü → 漢字 \U0001f600"
    assert len(one_line("x" * 10**6)) < 2100


def test_nothing_that_is_shown_acts_on_the_terminal() -> None:
    table = Table(HOSTILE)
    table.add_row(HOSTILE)
    out = io.StringIO()
    terminal = Terminal(file=out, width=60, force_terminal=True, color_system="standard")
    for shown in (HOSTILE, line(HOSTILE), Text(HOSTILE, style="red"), table):
        terminal.print(shown)
    said = out.getvalue()
    assert "\x1b[2J" not in said and "\u202e" not in said and "\r" not in said and "[red]" in said
    assert "\x1b[31m" in said  # our own colour


def test_a_log_has_a_line_for_each_message(monkeypatch, capsys) -> None:
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    log_to_stderr()
    logging.getLogger().error("failed %s", HOSTILE)
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1 and "\x1b" not in said and "\\x1b[2J" in said
