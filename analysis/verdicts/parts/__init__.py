"""Parts of the answer of a study of arms, one in each module: a function that `analysis.verdicts.answer.part` registers."""
