"""judge: from a study to its answer, by the judge of what its design declares."""

from collections.abc import Callable
from dataclasses import dataclass

from analysis.study import Study
from analysis.verdicts import arms
from analysis.verdicts.answer import Judgement
from core.registry import Registry, load


@dataclass(frozen=True)
class Judge:
    """A judge of other studies than those of arms. name: of a kind of study, or of the section of a design that it answers.

    implementation: a function `(study, brief) -> Judgement`, or its name, "module:function", imported when it is needed.
    """

    name: str
    implementation: Callable[[Study, bool], Judgement] | str


JUDGES = Registry(
    "judges",
    [Judge("ladder", "analysis.verdicts.ladder:judge"), Judge("logs", "analysis.verdicts.logs:judge")],
)


def judge(study: Study, *, brief: bool = False) -> Judgement:
    """The answer of a study. brief: only what a headline needs."""
    design = study.design
    declared = {design.kind, *design.extra, *(name for name, section in vars(design).items() if section is not None)}
    found = next((load(each.implementation) for each in JUDGES.entries() if each.name in declared), arms.judge)
    answer: Judgement = found(study, brief)
    return answer
