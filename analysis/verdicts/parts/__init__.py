"""Parts of the answer of a study of arms, one in each module, which are all run by `analysis.verdicts.arms`.

A module has `part(study, context) -> Part | None` (None: nothing to say) and `ORDER`, its place among the others.
"""
