"""The answer of runs that another program logged: as of arms, with what the logs don't tell."""

from dataclasses import replace

from analysis.study import Study
from analysis.verdicts import arms
from analysis.verdicts.answer import Judgement

PAIRED = "paired by the seed that the logs name"


def judge(study: Study, brief: bool = False) -> Judgement:
    """Compare every arm with the control by the same rules as a study's own runs."""
    answer = arms.judge(study, brief)
    logs = study.design.logs
    assert logs is not None
    source = f"Runs were read from {', '.join(logs.sources)}; another program trained them."
    return replace(
        answer,
        methods=answer.methods.replace(arms.PAIRED, PAIRED),
        pairing="What runs of one seed share isn't in the logs; differences are taken within seeds (r: their correlation).",
        notes=tuple(f"{note}." for note in logs.notes),
        declared=source,
    )
