"""Waiting for a block says what changes, and not that time passes."""

from types import SimpleNamespace

import pytest

from sweeps.launch import blocks


@pytest.mark.parametrize(("second", "said"), [("PENDING", 1), ("RUNNING", 2)])
def test_the_time_that_tasks_have_left_is_no_change(tmp_path, monkeypatch, second, said) -> None:
    def polled(state: str, left: float) -> SimpleNamespace:
        task = SimpleNamespace(state=state, reason="", seconds_left=left)
        return SimpleNamespace(is_under_way=True, tasks=(task,), silence=None)

    polls = iter(
        [polled("PENDING", 300), polled(second, 290), polled(second, 280), SimpleNamespace(is_under_way=False)]
    )
    monkeypatch.setattr(blocks, "status", lambda *where, **asked: next(polls))
    monkeypatch.setattr(blocks, "POLL_S", 0.0)
    seen: list[object] = []
    blocks.wait("study", tmp_path, "url", seen.append)
    assert len(seen) == said
