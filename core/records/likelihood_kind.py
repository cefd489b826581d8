"""Kinds of validation NELBO (exact, bound, not comparable) and the comparison of two of them."""

from collections.abc import Mapping
from typing import Any

from core.config.objective import Likelihood as Kind
from core.records.designs import Likelihood

CALLED: dict[Kind, str] = {
    "exact": "exact negative log-likelihoods",
    "bound": "bounds, at or above their model's negative log-likelihood",
    "tuned": "of models tuned to preferences, which say how far those moved and not how well they predict",
}
ACROSS = (
    "a bound against an exact likelihood: a lower number of the exact one doesn't prove that its model predicts better, for "
    "the bound may lie above its own model's likelihood; a lower bound does prove it"
)


def incomparable(one: Likelihood, two: Likelihood) -> str | None:
    """Reason why two arms' numbers can't be compared, or None."""
    if "tuned" in (one.kind, two.kind):
        return "a model tuned to preferences isn't one of the text's likelihood, so its NELBO isn't compared"
    if one.tokenizer != two.tokenizer:
        return f"tokens of {one.tokenizer} aren't those of {two.tokenizer}, so NELBOs per token aren't compared"
    if one.of != two.of:
        return f"the NELBO of {one.of} isn't compared with that of {two.of}"
    return None


def across(one: Likelihood, two: Likelihood, difference: float) -> bool:
    """True if a difference, one's number minus two's, is of a bound against an exact likelihood and proves nothing: the
    exact one is the lower."""
    return {one.kind, two.kind} == {"exact", "bound"} and (difference < 0) == (one.kind == "exact")


def listed(arms: Mapping[str, Likelihood]) -> str:
    """Describe the kinds of the arms' numbers, a sentence each; empty if all have one kind. arms: by label."""
    groups: dict[tuple[Any, ...], list[str]] = {}
    for label, found in arms.items():
        groups.setdefault((found.kind, found.of, found.tokenizer), []).append(label)
    if len(groups) < 2:
        return ""
    said = []
    for (kind, of, tokenizer), labels in groups.items():
        where = f", of {of}" if len({group[1] for group in groups}) > 1 else ""
        where += f", per token of {tokenizer}" if len({group[2] for group in groups}) > 1 else ""
        said.append(f"{', '.join(labels)}: {CALLED[kind]}{where}.")
    if {"exact", "bound"} <= {group[0] for group in groups}:
        said.append(f"{ACROSS[0].upper()}{ACROSS[1:]}.")
    return " ".join(said)
