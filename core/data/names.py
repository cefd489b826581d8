"""Names of corpora: KIND:ARGUMENT, or a mixture by its parts.

    0.7*stdlib + 0.3*text:PATH

Parts are separated by " + ", and each is WEIGHT*CORPUS. Weights are positive and count relative to their sum.
"""

import re

from core.errors import UserError

SEPARATOR = " + "
WEIGHTED = re.compile(r"\s*(\d+(?:\.\d*)?(?:[eE][-+]?\d+)?|\.\d+)\s*\*(.*)", re.S)


def parse(name: str) -> list[tuple[float, str]]:
    """Weights, which sum to 1, and names of a mixture's parts; nothing where the name is of one corpus.

    Raises UserError for a part without a weight, a weight of 0, a part that is named twice, and fewer than two parts.
    """
    if not WEIGHTED.fullmatch(name):
        return []
    parts: list[tuple[float, str]] = []
    for text in name.split(SEPARATOR):
        found = WEIGHTED.fullmatch(text)
        if not found or not found[2].strip():
            raise UserError(
                f"data.corpus={name}: '{text.strip()}' is no part of a mixture: write WEIGHT*CORPUS for each, with ' + ' "
                "between them (a path with ' + ' in it can't be part of one)"
            )
        if float(found[1]) == 0:
            raise UserError(
                f"data.corpus={name}: the weight of {found[2].strip()} must be positive; leave the part out"
            )
        parts.append((float(found[1]), found[2].strip()))
    names = [part for _, part in parts]
    if len(parts) < 2:
        raise UserError(
            f"data.corpus={name} is a mixture of one part: write data.corpus={names[0]}, or add ' + ' and more"
        )
    for part in names:
        if names.count(part) > 1:
            raise UserError(f"data.corpus={name} names {part} twice: add its weights up")
    total = sum(weight for weight, _ in parts)
    return [(weight / total, part) for weight, part in parts]


def kinds(name: str) -> set[str]:
    """The kinds of corpora that a name speaks of: of one, or of a mixture's parts."""
    return {part.partition(":")[0] for part in [part for _, part in parse(name)] or [name]}
