"""Main effects and interactions of a full factorial design."""

from analysis.statistics.factorial import Contrast, Factorial, of_study
from analysis.study import Study
from analysis.table import Column, Table
from analysis.verdicts.answer import Context, Part, part
from analysis.verdicts.comparison_tables import effect_cells, effect_columns, exact_effect

BOUGHT = "arms have bought different numbers of seeds, and those with large effects the fewest"
MAIN = "Mean difference from the control's level, averaged over all levels of the other factors."
CROSSED = (
    "How much a change of one factor changes the effect of the other (a difference of differences), averaged over what else "
    "varies: 0 where effects add up."
)


@part("factorial", order=40)
def factorial_part(study: Study, context: Context) -> Part | None:
    """Both families of contrasts in the study's metric, or why there are none."""
    if context.brief or len(study.design.factors) < 2:
        return None
    main, crossed, note = of_study(study) if context.course is None else (None, None, BOUGHT)
    found = {"main_effects": main, "interactions": crossed, "factorial_note": note}
    if main is None or crossed is None:
        title, none = "Main effects and interactions", f"no main effects and interactions: {note}"
        said = Table("factorial", (), (), title=title, intro=f"None: {note}.", terminal=none, on=("page", "terminal"))
        return Part(found, (said,) if note else ())
    where, alpha = context.primary.title, study.design.alpha
    also = f" {note.capitalize()}." if note else ""
    tables = (
        _table("main effects", "averaged over the other factors", MAIN + also, where, main, alpha),
        _table("interactions", "how much one changes the other's effect", CROSSED + also, where, crossed, alpha),
    )
    return Part(found, tables)


def _table(title: str, meaning: str, intro: str, where: str, family: Factorial, alpha: float) -> Table:
    return Table(
        title.replace(" ", "-"),
        (Column(where, terminal="of"), *effect_columns(alpha), Column("n", on=("page", "file"))),
        tuple(
            (_steps(each), *effect_cells(each.effect, each.p_holm, alpha), str(each.effect.n))
            for each in family.contrasts
        ),
        tuple({"of": _steps(each), **exact_effect(each.effect), "p_holm": each.p_holm} for each in family.contrasts),
        title=title.capitalize(),
        terminal=f"{title} in {where}: {meaning}",
        intro=f"{intro} Holm adjusts over this table.",
    )


def _steps(contrast: Contrast) -> str:
    """A contrast's factors in words: each from its reference to its level."""
    steps = zip(contrast.factors, contrast.reference, contrast.levels, strict=True)
    return " x ".join(f"{name} {base} → {level}" for name, base, level in steps)
