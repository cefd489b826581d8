"""judge: from a study to its answer, by the judge of what its design declares."""

import importlib
from collections.abc import Callable
from typing import Any

from analysis.study import Study
from analysis.verdicts import arms
from analysis.verdicts.answer import Judgement

Judge = Callable[[Study, bool], Judgement]

# Judges by the kind of a design, or by the section of a design that they answer: functions `(study, brief) -> Judgement`, or
# the modules of this package with a function `judge`, imported when they are needed. Other packages add their own.
JUDGES: dict[str, Judge | str] = {"ladder": "analysis.verdicts.ladder"}


def judge(study: Study, *, brief: bool = False) -> Judgement:
    """The answer of a study. brief: only what a headline needs."""
    found: Any = next((each for name, each in JUDGES.items() if _declares(study, name)), arms.judge)
    return (importlib.import_module(found).judge if isinstance(found, str) else found)(study, brief)


def _declares(study: Study, name: str) -> bool:
    design = study.design
    return design.kind == name or name in design.extra or getattr(design, name, None) is not None
