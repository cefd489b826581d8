"""The interim analyses of a sweep that is bought until it is decided: what each of them decided."""

from analysis.formatting import pvalue, signed
from analysis.study import Study
from analysis.table import Column, Medium, Prose, Table
from analysis.verdicts.answer import Context, Part, part
from core.runtime.units import counted


@part("interim analyses", order=20)
def interim_analyses_part(study: Study, context: Context) -> Part | None:
    """A table of all comparisons by analysis, and for a terminal one of the analyses alone."""
    run, alpha, margin = context.course, study.design.alpha, study.design.margin
    if run is None:
        return None
    steps = [(look.seeds, step) for look in run.looks for step in look.steps]
    rows = tuple(
        (
            f"{seeds} seeds: {step.label}", signed(step.estimate, margin), pvalue(step.p_holm, alpha),
            pvalue(step.p_equivalence, alpha), "" if step.chance is None else f"{step.chance:.2f}", str(step.n),
            Prose(step.decision),
        )
        for seeds, step in steps
    )  # fmt: skip
    page: tuple[Medium, ...] = ("page",)
    at = run.rule.fixed
    columns = (
        Column("look, comparison", file=context.primary.title), Column("effect"), Column("Holm p"),
        Column("equivalence p", page), Column("chance of a verdict", page), Column("n", page), Column("decision", prose=True),
    )  # fmt: skip
    intro = (
        f"{run.runs} runs{' so far' if run.wanted else ''}, where the fixed design of {at} seeds has "
        f"{run.fixed_runs}. After every block the open comparisons were looked at, and what was decided bought no more: "
        f"{run.kept}. Effects of arms that ended early look larger than they are. Different: detected; equivalent: within "
        f"the margin; futile: a chance below {100 * run.rule.futile:.0f} % of either by {at} seeds; lost: no pair of its "
        "runs can be compared."
    )
    title = "Bought until decided"
    exact = tuple({"seeds": seeds, **vars(step), "arms": " − ".join(step.arms)} for seeds, step in steps)
    short = tuple(
        (counted(look.seeds, "seed"), str(len(look.steps) - len(look.decided)), Prose("; ".join(look.decided)))
        for look in run.looks
    )  # fmt: skip
    heads = (Column("look"), Column("open"), Column("decided", prose=True))
    tables = (
        Table("looks", columns, rows, exact, title=title, label="Looks", intro=intro, on=("page", "file")),
        Table("looks", heads, short, terminal=title.lower(), below=(run.kept,), on=("terminal",)),
    )
    sources = ("any-time valid intervals, see docs/ablations.md",)
    return Part({"course": run}, tables if run.looks else (), sentence=run.savings, sources=sources)
