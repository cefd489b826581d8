"""Waiting for what comes back: a full disk that is cleared, a server that is restarted."""

import errno
import logging
import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn, TypeVar

from tenacity import RetryCallState, Retrying, stop_after_delay, wait_exponential

from core.errors import UserError

LIMIT_VARIABLE = "ABLATE_PATIENCE_S"
SLICE_S = 0.2
FULL = (errno.ENOSPC, errno.EDQUOT)
FULL_WORDS = ("no space left on device", "disk quota exceeded", "os error 28", "pytorchstreamwriter failed")

log = logging.getLogger(__name__)
T = TypeVar("T")


class OutOfPatienceError(RuntimeError):
    """The wait for something exceeded its limit."""


def _go_on() -> None:
    """Nobody asks to stop."""


@dataclass(frozen=True)
class Patience:
    """Waiting time and retry interval: pauses double from first_s to most_s, each with a random share off.

    check: called between short sleeps; it raises when whoever waits is told to stop.
    """

    limit_s: float = 6 * 3600.0
    first_s: float = 0.5
    most_s: float = 15.0
    check: Callable[[], None] = _go_on

    @classmethod
    def of_environment(cls, check: Callable[[], None] = _go_on) -> "Patience":
        """The default, or $ABLATE_PATIENCE_S seconds. Raises UserError when that isn't a number."""
        text = os.environ.get(LIMIT_VARIABLE)
        try:
            return cls(check=check) if text is None else cls(limit_s=float(text), check=check)
        except ValueError:
            raise UserError(f"{LIMIT_VARIABLE}='{text}' is not a number of seconds") from None

    def call(
        self,
        action: Callable[[bool], T],
        trouble: Callable[[Exception], str | None],
        on_trouble: Callable[[], None] = _go_on,
    ) -> T:
        """Do it, again and again while it fails for a reason that may pass.

        action is given whether an attempt at it failed before; trouble says what is wrong, in words, or None for an
        error that waiting doesn't mend: that one is raised. on_trouble is called after each failure.
        Raises OutOfPatienceError, whose cause is the last error, after limit_s.
        """
        began = time.monotonic()

        def reason(state: RetryCallState) -> str | None:
            error = state.outcome.exception() if state.outcome else None
            return trouble(error) if isinstance(error, Exception) else None

        def pause_s(state: RetryCallState) -> float:
            return wait_exponential(self.first_s, self.most_s)(state) * random.uniform(0.5, 1.0)

        def give_up(state: RetryCallState) -> NoReturn:
            assert state.outcome is not None
            raise OutOfPatienceError(
                f"{reason(state)}; given up after {time.monotonic() - began:.0f} s"
            ) from state.outcome.exception()

        def tell(state: RetryCallState) -> None:
            log.warning("%s; waiting, next try in %.1f s", reason(state), state.upcoming_sleep)

        for attempt in Retrying(
            retry=lambda state: reason(state) is not None,
            stop=stop_after_delay(self.limit_s),
            wait=pause_s,
            sleep=self.sleep,
            after=lambda state: on_trouble(),
            before_sleep=tell,
            retry_error_callback=give_up,
        ):
            number = attempt.retry_state.attempt_number
            with attempt:
                result = action(number > 1)
        if number > 1:
            log.warning("it works again after %.1f s", time.monotonic() - began)
        return result

    def sleep(self, seconds: float) -> None:
        """Sleep, but end by the exception of `check` soon after a stop is asked for."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self.check()
            time.sleep(min(SLICE_S, left))
        self.check()


def no_space(error: BaseException | None) -> str | None:
    """Message for an error of a full disk or quota, whatever library wrapped it; None for any other."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in FULL:
            where = f" ({error.filename})" if error.filename else ""
            return f"{(error.strerror or 'No space left on device').lower()}{where}"
        if any(words in str(error).lower() for words in FULL_WORDS):
            return "no space left on device"
        error = error.__cause__ or error.__context__
    return None
