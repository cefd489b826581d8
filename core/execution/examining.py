"""Does a function that nobody vouches for pass its tests? The tests run in one confined process, the function in another."""

import contextlib
import os
import secrets
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from core.execution import calls
from core.execution.sandbox import GRACE_S, Limits, start


class Examined(NamedTuple):
    """A function's source, its name, the tests (a function `check` of it), and what else the tests need."""

    source: str
    name: str
    test: str
    helpers: str = ""


@dataclass(frozen=True)
class Verdict:
    """reason: what was wrong, as far as it is known."""

    passed: bool
    reason: str | None = None


def examine(asked: Examined, limits: Limits = Limits()) -> Verdict:  # noqa: B008  (frozen)
    """Run a function's tests, for `limits.wall_s` seconds at most.

    The tests call it through a pipe and compare what comes back, which is rebuilt from plain values. It passes if they come
    to their end: the process that runs them then writes a nonce that the function's process has never seen, and exits with 0.
    Whatever the function does to its own process (print, exit, replace what is compared) is therefore no pass.
    """
    own, nonce = Path(calls.__file__).read_text(encoding="utf-8"), secrets.token_hex(16)
    with _pipes(3) as ((ask, asking), (hear, saying), (read, writing)):
        candidate = start(
            f"{own}\n\nserve({asked.source!r}, {asked.name!r})\n", limits=limits, stdin=ask.give(), stdout=saying.give()
        )
        with candidate:
            ask.close()
            saying.close()
            tests = start(
                f"{own}\n\nexamine({asked.helpers!r}, {asked.test!r}, {asked.name!r}, {nonce!r})\n",
                limits=limits,
                stdin=hear.give(),
                stdout=asking.give(),
                stderr=writing.give(),
            )
            with tests:
                for end in (hear, asking, writing):
                    end.close()
                ended = tests.wait(limits.wall_s + GRACE_S)
                said = os.read(read.give(), 1024).decode(errors="replace")
            # Its time began a moment before the tests': either may be the one that runs out.
            late = candidate.end().timed_out or ended.timed_out
    if ended.status == 0 and said == nonce:
        return Verdict(True)
    return Verdict(False, "out of time" if late else said or f"the tests ended with status {ended.status}")


class _End:
    """One end of a pipe, closed once."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def give(self) -> int:
        return self._descriptor

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


@contextlib.contextmanager
def _pipes(count: int) -> Iterator[list[tuple[_End, _End]]]:
    """Pipes as (reading, writing) ends, all of which are closed in the end."""
    ends = [tuple(map(_End, os.pipe())) for _ in range(count)]
    try:
        yield ends  # type: ignore[misc]
    finally:
        for pair in ends:
            for end in pair:
                end.close()


def examine_all(asked: Sequence[Examined], limits: Limits, workers: int) -> Iterator[Verdict]:
    """The verdict on each, in order, several at once."""
    with ThreadPoolExecutor(workers) as pool:
        yield from pool.map(lambda each: examine(each, limits), asked)
