"""Sequential runs of a sweep: seeds are trained in blocks, and an interim analysis after each decides what is trained next.

All of it follows from the records and the design's rule, so that it can be computed again at any time.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Literal

import numpy as np

from analysis.statistics.compare import VERDICT_FLOOR, holm
from analysis.statistics.sequential import SHARE, anytime, chance_of_verdict
from analysis.study import Study
from core.errors import UserError
from core.records.designs import AdaptiveDesign, Design
from core.records.interim_analyses import Retry

FIRST, BLOCK = 4, 2  # three degrees of freedom are the fewest at which only very large effects pass
FUTILE = 0.05

# open: train more seeds. futile: hardly any chance of a verdict. lost: no pair of its runs can be compared. undecided: no
# seed is left to train.
Decision = Literal["open", "different", "equivalent", "futile", "lost", "undecided"]


@dataclass(frozen=True)
class Rule:
    """Group-sequential rule of an adaptive design.

    fixed: seeds of the design: where it ends, and what a fixed design would train. first, block: seeds before the first
    analysis, and between analyses. share: of alpha, divided among the analyses before the last. futile: an arm is
    dropped when its chance of a verdict is below this.
    """

    fixed: int
    first: int = FIRST
    block: int = BLOCK
    share: float = SHARE
    futile: float = FUTILE

    @classmethod
    def of(cls, fixed: int, *, block: int | None = None) -> "Rule":
        """The rule for a design of so many seeds. block: a tenth of them, or 2, when left out; UserError below 1."""
        block = max(BLOCK, round(fixed / 10)) if block is None else block
        if block < 1:
            raise UserError(f"block: at least 1 seed between looks is needed, not {block}")
        return cls(fixed, first=min(fixed, max(FIRST, block)), block=block)

    @classmethod
    def of_design(cls, design: Design) -> "Rule | None":
        """A design's rule; None for a fixed design."""
        found = design.adaptive
        return cls(found.fixed, found.first, found.block, found.share, found.futile) if found else None

    @property
    def looks(self) -> dict[int, float]:
        """Numbers of seeds that an analysis follows, each with its share of alpha."""
        early = range(self.first, self.fixed, self.block)
        last = {self.fixed: 1 - self.share if early else 1.0}
        return {n: self.share / len(early) for n in early} | last

    def designed(self, design: Design, seeds_per_arm: Mapping[str, int], retried: Sequence[Retry] = ()) -> Design:
        """A design with this rule in it. seeds_per_arm: how many of its seeds, the first ones, each arm is trained on;
        retried: runs that were trained again after they failed, by the number of seeds of the analysis before."""
        again = tuple((seeds, tuple(cells)) for seeds, cells in retried)
        return replace(design, adaptive=AdaptiveDesign(**asdict(self), bought=dict(seeds_per_arm), retried=again))


@dataclass(frozen=True)
class Step:
    """One comparison at one analysis: the first arm minus the second over n pairs of finished runs.

    p_holm, p_equivalence: any-time valid, adjusted within the family. chance: of a verdict at the end, as it looks now.
    """

    arms: tuple[str, str]
    label: str
    n: int
    estimate: float | None
    p_holm: float | None
    p_equivalence: float | None
    chance: float | None
    decision: Decision


@dataclass(frozen=True)
class InterimAnalysis:
    """One analysis after so many seeds: the comparisons that were open before it."""

    seeds: int
    steps: tuple[Step, ...]

    @property
    def decisions(self) -> dict[str, str]:
        """Its decision on each comparison."""
        return {step.label: step.decision for step in self.steps}

    @property
    def decided(self) -> list[str]:
        """The comparisons that it decided, in words."""
        return [f"{step.label}: {step.decision}" for step in self.steps if step.decision != "open"]


@dataclass(frozen=True)
class SequentialRun:
    """A sequential run from its first block to where its records end.

    looks: its interim analyses. wanted: runs to train before the next one, as (arm, seed); empty when all is decided. seeds:
    seeds per arm by then. looks_of: by comparison, the analyses that it was part of, in seeds.
    """

    rule: Rule
    looks: tuple[InterimAnalysis, ...]
    wanted: tuple[tuple[str, int], ...]
    seeds: Mapping[str, int]
    looks_of: Mapping[tuple[str, str], tuple[int, ...]]
    decisions: Mapping[tuple[str, str], Decision]

    @property
    def decided(self) -> bool:
        """True if nothing is left to train."""
        return not self.wanted

    @property
    def kept(self) -> str:
        """The error rates that its numbers keep, in words."""
        return (
            "p-values and intervals hold however often one looked; "
            f"{self.rule.share:.0%} of alpha is for looks before {self.rule.fixed} seeds"
        )

    @property
    def runs(self) -> int:
        """Number of runs so far, those included that are wanted."""
        return sum(self.seeds.values())

    @property
    def fixed_runs(self) -> int:
        """Number of runs of the fixed design that it stands for."""
        return self.rule.fixed * len(self.seeds)

    @property
    def savings(self) -> str:
        """The runs so far beside the fixed design's, in a sentence; empty before the first analysis."""
        if not self.looks:
            return ""
        fixed = f"the fixed design's {self.fixed_runs} ({1 - self.runs / self.fixed_runs:.0%} fewer)"
        left = sum(decision == "undecided" for decision in self.decisions.values())
        so_far = "Bought until decided" if self.decided else "Being bought until decided"
        undecided = f", {left} of {len(self.decisions)} comparisons undecided at the last seed" if left else ""
        return f"{so_far}: {self.runs} runs beside {fixed}{undecided}."


@dataclass(frozen=True)
class InterimTest:
    """A comparison's numbers at an analysis, before they are adjusted; None where there are too few pairs."""

    n: int
    estimate: float | None = None
    pvalue: float | None = None
    p_equivalence: float | None = None
    differences: tuple[float, ...] = ()


def sequential_run(study: Study) -> SequentialRun:
    """Compute the decisions so far from the records, and what to train next.

    study: of an adaptive design (`Rule.designed`). A comparison without a pair after its first block is lost; a
    run that failed costs its pair. Raises UserError for a fixed design.
    """
    rule = Rule.of_design(study.design)
    if rule is None:
        raise UserError("this design isn't adaptive: run it with --until-decided")
    control, metric = study.design.control, study.design.metric
    families = [(arm, control) for arm in study.arms if arm != control], list(study.design.contrasts)
    values = {arm: study.values(arm, metric) for arm in study.arms}
    decisions: dict[tuple[str, str], Decision] = {pair: "open" for family in families for pair in family}
    known: dict[tuple[str, str], InterimTest] = {}
    looked: dict[tuple[str, str], tuple[int, ...]] = dict.fromkeys(decisions, ())
    seeds: dict[str, int] = dict.fromkeys(study.arms, 0)
    looks: list[InterimAnalysis] = []
    wanted: tuple[tuple[str, int], ...] = ()
    for n in rule.looks:
        open_arms = {arm for pair, decision in decisions.items() if decision == "open" for arm in pair}
        if not open_arms:
            break
        seeds |= {arm: n for arm in study.arms if arm in open_arms}
        wanted = tuple(
            (arm, seed)
            for place, seed in enumerate(study.design.seeds[:n])
            for arm in study.arms
            if place < seeds[arm] and (arm, seed) not in study.cells
        )
        if wanted:
            break
        steps: list[Step] = []
        for family in families:
            pending = [pair for pair in family if decisions[pair] == "open"]
            looked |= {pair: (*looked[pair], n) for pair in pending}
            known |= {pair: _tested(study, values, pair, looked[pair], rule) for pair in pending}
            steps += _decide(study, family, pending, known, rule, n)
        decisions |= {step.arms: step.decision for step in steps}
        looks.append(InterimAnalysis(n, tuple(steps)))
    return SequentialRun(rule, tuple(looks), wanted, seeds, looked, decisions)


def late_pairs(study: Study, pair: tuple[str, str], both_S: np.ndarray) -> dict[int, int]:
    """Places of seeds whose pair failed at first: after how many seeds one had looked when it was trained again.

    Such a pair counts from the next planned look on, so that no look is taken twice. A comparison that had too few pairs to
    be tested when its runs were tried again has them all along.
    both_S: (S,) whether both runs finished by now.
    """
    late: dict[int, int] = {}
    places = {seed: place for place, seed in enumerate(study.design.seeds)}
    rounds = study.design.adaptive.retried if study.design.adaptive else ()
    for number, (looked, cells) in enumerate(rounds):
        # Pairs of later rounds weren't there yet either.
        missing = {places[seed] for _, each in rounds[number:] for arm, seed in each if arm in pair and seed in places}
        if sum(bool(both_S[place]) and place not in missing for place in range(looked)) >= VERDICT_FLOOR:
            late |= {places[seed]: looked for arm, seed in cells if arm in pair and seed in places}
    return late


def analysed_pairs(
    both_S: np.ndarray, looks: Sequence[int], rule: Rule, late: Mapping[int, int] | None = None
) -> tuple[list[int], list[tuple[int, float]]]:
    """Looks after so many seeds as the pairs of finished runs had them.

    both_S: (S,) whether both runs finished; late: as `late_pairs` has it. Returns the places of the pairs in the order of the
    looks that saw them, and the looks as numbers of pairs with their shares of alpha. A look at fewer than 2 pairs is none;
    of looks at the same pairs the one with the largest share counts, which rejects whatever the others do.
    """
    order: list[int] = []
    shares: dict[int, float] = {}
    for seeds in looks:
        seen = [place for place in range(seeds) if both_S[place] and (late or {}).get(place, 0) < seeds]
        order += [place for place in seen if place not in order]
        if len(order) >= 2:
            shares[len(order)] = max(shares.get(len(order), 0.0), rule.looks[seeds])
    return order, list(shares.items())


def _tested(
    study: Study, values: Mapping[str, np.ndarray], pair: tuple[str, str], looks: Sequence[int], rule: Rule
) -> InterimTest:
    n, margin, alpha = looks[-1], study.design.margin, study.design.alpha
    if study.incomparable(study.design.metric, *pair, seeds=n):
        return InterimTest(0)
    difference_S = values[pair[0]] - values[pair[1]]
    both_S = np.isfinite(difference_S)
    late = late_pairs(study, pair, both_S)
    order, shares = analysed_pairs(both_S, looks, rule, late)
    differences, pairs = difference_S[order], len(order)
    if pairs < VERDICT_FLOOR:
        return InterimTest(pairs)
    try:
        found = anytime(differences, looks=shares, margin=margin, alpha=alpha)
    except UserError:  # identical differences: nothing can be tested, which the tables say
        return InterimTest(pairs, float(differences.mean()))
    return InterimTest(pairs, found.estimate, found.pvalue, found.p_equivalence, tuple(differences))


def _decide(
    study: Study,
    family: Sequence[tuple[str, str]],
    pending: Sequence[tuple[str, str]],
    known: Mapping[tuple[str, str], InterimTest],
    rule: Rule,
    n: int,
) -> list[Step]:
    alpha = study.design.alpha
    adjusted = _adjusted(family, {pair: test.pvalue for pair, test in known.items()})
    same = _adjusted(family, {pair: test.p_equivalence for pair, test in known.items()})
    # Those dropped without a difference count for Holm too.
    left = sum(adjusted.get(pair, 1.0) >= alpha for pair in family)
    steps = []
    for pair in pending:
        test, chance = known[pair], None
        if test.differences and n < rule.fixed:
            chance = chance_of_verdict(
                test.differences,
                rule.fixed - n + test.n,
                pvalue=(1 - rule.share) * alpha / max(1, left),
                margin=study.design.margin,
            )
        if adjusted.get(pair, 1.0) < alpha:
            decision: Decision = "different"
        elif same.get(pair, 1.0) < alpha:
            decision = "equivalent"
        elif test.n == 0:
            decision = "lost"
        elif n == rule.fixed:
            decision = "undecided"
        else:
            decision = "futile" if chance is not None and chance < rule.futile else "open"
        label = " − ".join(study.labels[arm] for arm in pair)
        steps.append(Step(pair, label, test.n, test.estimate, adjusted.get(pair), same.get(pair), chance, decision))
    return steps


def _adjusted(
    family: Sequence[tuple[str, str]], pvalues: Mapping[tuple[str, str], float | None]
) -> dict[tuple[str, str], float]:
    """Holm's adjustment over a family: those without a p-value yet count as 1, as they may get one."""
    given = [pvalues.get(pair) for pair in family]
    adjusted = holm([1.0 if p is None else p for p in given])
    return {pair: float(p) for pair, p, own in zip(family, adjusted, given, strict=True) if own is not None}
