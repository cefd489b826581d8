import errno
import logging

import pytest

from core.errors import UserError
from core.runtime.retry import OutOfPatienceError, Patience, no_space


@pytest.fixture
def slept(monkeypatch):
    """The pauses made, none of them waited for."""
    pauses = []
    monkeypatch.setattr(Patience, "sleep", lambda self, seconds: pauses.append(seconds))
    return pauses


def failing(times, error):
    seen = []

    def action(again):
        seen.append(again)
        if len(seen) <= times:
            raise error
        return len(seen)

    action.seen = seen
    return action


def full():
    return OSError(errno.ENOSPC, "No space left on device", "/runs/x")


def test_what_fails_for_a_while_is_tried_again_with_longer_pauses_up_to_a_limit(slept, caplog):
    action = failing(8, full())
    with caplog.at_level(logging.WARNING):
        assert Patience(first_s=1.0, most_s=8.0).call(action, no_space) == 9
    assert action.seen == [False] + [True] * 8
    for pause, most in zip(slept, [1, 2, 4, 8, 8, 8, 8, 8], strict=True):
        assert most / 2 <= pause <= most
    assert len(set(slept[3:])) > 1  # workers don't all come back at once
    assert "no space left on device (/runs/x); waiting, next try in" in caplog.text
    assert "it works again" in caplog.text


def test_an_error_that_waiting_does_not_mend_is_raised_at_once(slept):
    with pytest.raises(OSError, match="denied"):
        Patience().call(failing(1, OSError(errno.EACCES, "Permission denied")), no_space)
    assert slept == []


def test_patience_ends(slept):
    with pytest.raises(OutOfPatienceError, match="no space left on device.*given up after 0 s"):
        Patience(limit_s=0).call(failing(1, full()), no_space)


def test_whoever_waits_can_be_stopped():
    def check():
        raise SystemExit

    with pytest.raises(SystemExit):
        Patience(first_s=60, check=check).call(failing(1, full()), no_space)


def test_a_full_disk_is_known_whatever_wraps_it():
    wrapped = RuntimeError("save failed")
    wrapped.__cause__ = full()
    quota = OSError(errno.EDQUOT, "Disk quota exceeded")
    rust = Exception("Error while serializing: I/O error: No space left on device (os error 28)")
    assert all(no_space(error) for error in (full(), wrapped, quota, rust))
    assert no_space(ValueError("shape")) is None and no_space(None) is None


def test_the_limit_comes_from_the_environment(monkeypatch):
    monkeypatch.setenv("ABLATE_PATIENCE_S", "90")
    assert Patience.of_environment().limit_s == 90
    monkeypatch.setenv("ABLATE_PATIENCE_S", "long")
    with pytest.raises(UserError, match="ABLATE_PATIENCE_S='long' is not a number"):
        Patience.of_environment()
