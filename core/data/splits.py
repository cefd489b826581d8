"""Choice of the held-out part, by file names or else about a tenth by size, and its description."""

import itertools
import re
from collections import Counter
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

from core.errors import UserError

SHARE = 0.1
LEAST, MOST = 0.01, 0.3  # shares held out that nobody needs to ask for
ROOM = 1.5  # as many times its share may be held out rather than that a document is cut
SHOWN = 4  # names of a list
# Of words that disagree the first counts: nothing that may be a test is trained on.
ROLES = {
    "test": {"test"},
    "validation": {"val", "valid", "validation", "dev", "heldout", "holdout"},
    "eval": {"eval"},
    "train": {"train"},
}
_WORD = re.compile(r"[^\W\d_]+")
_HUMP = re.compile(r"(?<=[^\W\d_A-Z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Origin:
    """Origin of a corpus's tokens: files, held-out parts, and skipped items by kind.

    named: the files' names say what is held out. fixed: nobody can choose how much is.
    """

    files: Sequence[str] = ()
    held: Sequence[str] = ()
    passed: Mapping[str, int] = field(default_factory=dict)
    named: bool = False
    fixed: bool = False


class Roles(NamedTuple):
    """Names of files to train on and to hold out (none: a part of the others), and how many were passed over, by kind."""

    train: list[str]
    held: list[str]
    passed: Counter[str]


def words(name: str) -> set[str]:
    """The lower-case words of a path: runs of letters, parted where a capital begins one; "held out" is also one word."""
    parts = [part.lower() for run in _WORD.findall(name) for part in _HUMP.split(run)]
    pairs = itertools.pairwise(parts)
    return {*parts, *("".join(pair) for pair in pairs if pair in (("held", "out"), ("hold", "out")))}


def role(name: str) -> str | None:
    """Use of a file by the words of its path: train, validation, eval or test; None if they don't say."""
    stem = name.rpartition(".")[0] or name
    return next((role for role, known in ROLES.items() if known & words(stem)), None)


def roles(corpus: str, names: Sequence[str]) -> Roles:
    """Part files by what their names say. Raises UserError where none is left to train on.

    Tests are passed over, validation files are held out; eval files only where there are none. All others are trained on.
    """
    found = {name: role(name) for name in names}
    held = [name for name in names if found[name] == "validation"]
    passed = Counter({"files named test": sum(one == "test" for one in found.values())})
    evals = [name for name in names if found[name] == "eval"]
    passed["files named eval"] = len(evals) if held else 0
    train = [name for name in names if found[name] in ("train", None)]
    if names and not train:
        raise UserError(
            f"data.corpus={corpus}: no file is left to train on, but for those named as held out or as a test "
            f"({listed(names)}): add a file, or rename one (the words train, val, valid, validation, dev, eval, test decide)"
        )
    return Roles(train, held or evals, +passed)


def hold_back(sizes: Mapping[Key, int], share: float | None) -> dict[Key, int]:
    """Held-out size at the end of each item: whole items in the order given, and a part of one that is too large.

    sizes: in any unit. Between 0.9 and 1.5 of the share is held out, and something of what is left to train on.
    """
    total = sum(sizes.values())
    wanted = total - int(total * (1 - (share or SHARE)))
    most, held, back = min(ROOM * wanted, (wanted + total) / 2), 0, dict[Key, int]()
    for key, size in sizes.items():
        whole = held + size <= most
        if held >= wanted or (not whole and held >= 0.9 * wanted):
            break
        back[key] = size if whole else wanted - held
        held += back[key]
    return back


def boundary(text: bytes, at: int) -> int:
    """Find a cut of a text near a byte: behind a line, else behind a word, never inside a character of UTF-8.

    What is cut off grows by half at most.
    """
    least = max(0, at - (len(text) - at) // 2)
    for mark in (b"\n", b" "):
        if (end := text.rfind(mark, least, at)) >= 0:
            return end + 1
    first = at
    while at > max(0, first - 3) and at < len(text) and text[at] & 0xC0 == 0x80:
        at -= 1
    return at


def check_share(
    corpus: str, train: int, held: int, origin: Origin, asked: float | None, *, mixed: bool = False
) -> None:
    """Refuse a share by names, unasked for, outside of 1 to 30 %, and one asked for where names or the kind say another.

    mixed: the corpus is a part of a mixture, for all of which the share was asked for.
    """
    share = held / max(1, train + held)
    said = f"data.corpus={corpus} holds out {share:.3g} of its tokens ({held:,} of {train + held:,}"
    if asked is None:
        if origin.named and not LEAST <= share <= MOST:
            raise UserError(
                f"{said}: {listed(origin.held)}), which isn't between {LEAST:.0%} and {MOST:.0%}: if it is meant, set "
                f"data.held_out_share={share:.2g}"
            )
    elif not mixed and origin.fixed:
        raise UserError(f"data.held_out_share={asked:g} means nothing to data.corpus={corpus}: leave it out")
    elif not mixed and origin.named and abs(share - asked) > max(0.1 * share, 0.005 * (share > LEAST)):
        raise UserError(
            f"data.held_out_share={asked:g}, but {said}) by its files' names: set it to {share:.2g}, or rename "
            f"{listed(origin.held)}"
        )


def sentence(corpus: str, train: int, held: int, origin: Origin) -> str:
    """The line that says how many tokens are trained on and held out, from which files, and what was passed over."""
    files = f"from {listed(origin.files)}" if origin.files else "generated"
    parts = [f"data.corpus={corpus}: {train:,} tokens to train on, {held:,} held out, {files}"]
    if origin.held:
        parts.append(f"held out ({held / max(1, train + held):.1%}): {listed(origin.held)}")
    if origin.passed:
        parts.append("passed over: " + ", ".join(f"{kind} {n:,}" for kind, n in sorted(origin.passed.items())))
    return "; ".join(parts)


def listed(names: Collection[str]) -> str:
    """Some names, and how many more there are."""
    first = [name for name, _ in zip(names, range(SHOWN), strict=False)]
    return ", ".join(first) + (f" and {len(names) - len(first):,} more" if len(names) > len(first) else "")
