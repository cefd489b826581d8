"""The answer of a ladder: a fitted scaling law, what it says of larger models, and its tables."""

from collections.abc import Mapping, Sequence
from typing import Any

from analysis.scaling.ladder import Ladder, fit_ladder
from analysis.scaling.trend import Interval
from analysis.study import Study
from analysis.table import Column, Table
from analysis.verdicts.answer import Judgement
from analysis.verdicts.ladder_figures import ladder_figures
from analysis.verdicts.lineage import declared, notes
from core.records.metrics import METRICS, metrics_in
from core.runtime.units import counted, short

NOTHING = 1e-5  # coefficients, exponents and losses below it are rounding

LETTERS = {"parameters": "N", "tokens": "D"}


def judge(study: Study, brief: bool = False) -> Judgement:
    """The answer of a ladder. brief: no law is fitted, and runs are counted alone."""
    return answer(study, None if brief else fit_ladder(study))


def answer(study: Study, found: Ladder | None) -> Judgement:
    """The answer that a fitted ladder gives."""
    design, total = study.design, study.missing + len(study.cells)
    return Judgement(
        study=study,
        headline=headline(found) if found else f"{study.complete} of {total} runs to fit a law to.",
        winner=None,
        winner_reason="a ladder's answer is a law, not an arm",
        tables=tuple(tables(found)) if found else (),
        found={"ladder": found} if found else {},
        draw=lambda: ladder_figures(found) if found else (),
        pages=("scaling",),
        extent=f"{len(design.arms)} points × {counted(len(design.seeds), 'seed')}",
        methods="",
        sources=("the law of scale and its fit (Hoffmann et al. 2022, arXiv 2203.15556)",),
        notes=notes(study),
        declared=declared(study),
    )


def headline(ladder: Ladder) -> str:
    """The law in a sentence, its fitted floor beside the known one, and how far the targets are from any run."""
    metric = METRICS[ladder.metric].label
    if not ladder.laws:
        why = next((note.removeprefix("no law: ") for note in ladder.notes if note.startswith("no law: ")), None)
        return f"No law can be fitted yet: {why or 'nothing has finished'}."
    runs = sum(point.n for point in ladder.points)
    parts = []
    for law in ladder.coefficients:
        v = {name: entry.value for name, entry in law.values.items()}
        more = "".join(f" {name}^{-v[name]:.2g}" for name in v if name in ("sparsity", "granularity"))
        told = f"{v['E']:.3g} + {v['A']:.3g} N^{-v['alpha']:.2f}{more} + {v['B']:.3g} D^{-v['beta']:.2f}"
        whose = "" if len(ladder.coefficients) == 1 else f"{' and '.join(law.families)}: "
        parts.append(whose + told.replace("-", "−"))
    said = [f"{metric} over {runs} runs: {'; '.join(parts)}."]
    if ladder.form.error is not None:
        said.append(
            f"Of the forms, “{ladder.form.name}” was kept: {ladder.form.error:.2%} off on the largest models, unseen."
        )
    if ladder.floor is not None:
        ends = [law.values["E"] for law in ladder.coefficients]
        shown = " and ".join(f"{e.value:.3f} [{e.low:.3f}, {e.high:.3f}]" for e in dict.fromkeys(ends))
        said.append(f"The source's own entropy is {ladder.floor:.3f}; E is {shown}.")
    if ladder.weak:
        said.append(f"These runs don't determine the law, so nothing is extrapolated: {'; '.join(ladder.weak)}.")
    return " ".join([*said, *distances(ladder)[:1]])


def distances(ladder: Ladder) -> list[str]:
    """Distance of each target from the nearest run, in a sentence."""
    trained = [point for point in ladder.points if point.n]
    if not trained:
        return []
    parameters, tokens = max(point.parameters for point in trained), max(point.tokens for point in trained)
    return [
        f"{name} at {short(at['tokens'])} tokens has {short(at['parameters'] / parameters)} times the parameters and "
        f"{short(at['tokens'] / tokens)} times the tokens of anything trained here: its bands say what the fits say, not "
        "that they hold there."
        for name, at in ladder.targets.items()
        if at["parameters"] > parameters or at["tokens"] > tokens
    ]


def tables(ladder: Ladder) -> list[Table]:
    """The ladder's notes and tables, those that have something to say."""
    noted = [Table("notes", (), (), caption=f"Note: {note}.", place="scaling", on=("page",)) for note in ladder.notes]
    made = (_law(ladder), _forms(ladder), _optima(ladder), _targets(ladder), _health(ladder), points(ladder))
    below = (*distances(ladder), *(f"note: {note}" for note in ladder.notes))
    last = [Table("notes", (), (), below=below, on=("terminal",))] if below else []
    return [*noted, *(table for table in made if table.rows), *last]


def _table(
    name: str,
    head: Sequence[str],
    shown: Sequence[tuple[str, ...]],
    exact: Sequence[Mapping[str, Any]],
    title: str,
    intro: str,
) -> Table:
    columns = tuple(map(Column, head))
    return Table(name, columns, tuple(shown), tuple(exact), title, "scaling", intro=intro, style="tight")


def _law(ladder: Ladder) -> Table:
    names = list(dict.fromkeys(name for law in ladder.coefficients for name in law.values))
    shown = [(name, *(_interval(law.values[name]) for law in ladder.coefficients)) for name in names]
    exact = [
        {"families": " and ".join(law.families), "coefficient": name, **vars(entry)}
        for law in ladder.coefficients
        for name, entry in law.values.items()
    ]
    shown += [("residual", *(f"{law.residual:.2%}" for law in ladder.coefficients))] if shown else []
    head = ("coefficient", *(" and ".join(law.families) for law in ladder.coefficients))
    caption = "Bootstrap over points, 95 %. N counts active parameters without the embedding table, D training tokens."
    title = "Law: L = E + A N^−alpha + B D^−beta"
    return _table("law", head, shown, exact, title, caption)


def _forms(ladder: Ladder) -> Table:
    shown = []
    for form in ladder.forms:
        error = "not determined" if form.error is None else f"{form.error:.2%}"
        shown.append((form.name, str(form.coefficients), error, "kept" if form == ladder.form else ""))
    numbers = ("coefficients", "error", "spread")
    exact = [
        {"form": form.name} | {name: getattr(form, name) for name in numbers} | {"kept": form == ladder.form}
        for form in ladder.forms
    ]
    caption = (
        "Fitted without the largest model of every family, and judged on those models' runs (root mean square of log "
        "residuals); the simplest form within 5 % of the least error is kept."
    )
    if any(form.error is None for form in ladder.forms):
        caption += (
            " A form is not determined where fits of it that are equally good differ on those models: it has no one error "
            "and can't be kept."
        )
    return _table("forms", ("form", "coefficients", "held-out error", ""), shown, exact, "Forms", caption)


def _optima(ladder: Ladder) -> Table:
    shown, exact = [], []
    for row in ladder.optima:
        valley = short(row.measured.parameters) if row.measured else "not between models"
        cells = ("", "", "")
        if row.parameters is not None and row.tokens is not None:
            cells = (_short(row.parameters), _short(row.tokens), f"{row.loss:.3f}")
        shown.append((row.family, f"{row.flops:.3g}", valley, *cells))
        facts: dict[str, Any] = {"family": row.family, "flops": row.flops}
        facts["measured_parameters"] = row.measured.parameters if row.measured else None
        exact.append(facts | _bounds("parameters", row.parameters) | _bounds("tokens", row.tokens) | {"loss": row.loss})
    caption = (
        "The best model for a budget of counted training FLOPs: the vertex of a parabola through the budget's runs, and "
        "where the law has its least loss, with bootstrap intervals."
    )
    head = ("family", "FLOPs", "N, parabola", "N, law", "D, law", "loss, law")
    return _table("isoflop", head, shown, exact, "Compute-optimal models", caption)


def _targets(ladder: Ladder) -> Table:
    shown, exact = [], []
    for row in ladder.extrapolations:
        far = ", ".join(
            f"{short(factor)}x in {LETTERS.get(name, name)}"
            for name, factor in row.beyond.items()
            if factor > 1 or name in LETTERS
        )
        best = (_short(row.optimal_parameters), _short(row.optimal_tokens))
        shown.append((row.target, row.family, _interval(row.loss), far, *best))
        facts = {"target": row.target, "family": row.family, "parameters": row.parameters, "tokens": row.tokens}
        facts |= _bounds("loss", row.loss) | {f"beyond_{name}": factor for name, factor in row.beyond.items()}
        facts |= _bounds("optimal_parameters", row.optimal_parameters)
        exact.append(facts | _bounds("optimal_tokens", row.optimal_tokens))
    caption = " ".join([*distances(ladder), "Best N and D: what the law would rather spend the same 6 N D FLOPs on."])
    head = ("target", "models like", "loss [95 % band]", "outside the runs by", "best N", "best D")
    return _table("extrapolation", head, shown, exact, "Extrapolation", caption)


def _health(ladder: Ladder) -> Table:
    targets = list(dict.fromkeys(name for row in ladder.health for name in row.at))
    shown, exact = [], []
    for row in ladder.health:
        label = METRICS[row.metric].label + (f" (at most {row.bound:g})" if row.bound is not None else "")
        at = tuple(_interval(row.at[name], row.bound) for name in targets)
        exponents = (_interval(row.trend.parameters), _interval(row.trend.tokens))
        shown.append((label, row.family, *exponents, *at))
        facts = {"metric": row.metric, "family": row.family, "points": row.trend.points, "bound": row.bound}
        facts |= _bounds("parameters_exponent", row.trend.parameters) | _bounds("tokens_exponent", row.trend.tokens)
        for name in targets:
            facts |= _bounds(name, row.at[name])
        exact.append(facts)
    caption = (
        "Power law in N and D by least squares on logs: exponents with t intervals, and at the targets 95 % prediction "
        "intervals, which hold only if the power law does. A value beyond what the metric can reach is a trend that can't "
        "hold as far as that."
    )
    head = ("router", "family", "N exponent", "D exponent", *(f"at {name}" for name in targets))
    return _table("health", head, shown, exact, "Routing health", caption)


def points(ladder: Ladder) -> Table:
    """Every point with what it came to."""
    shown, exact, followed = [], [], metrics_in("health")
    for point in ladder.points:
        health = {metric: point.health.get(metric) for metric in followed}
        law = ladder.laws.get(point.family)
        fitted = float(law.predict(point.parameters, point.tokens, **ladder.modifiers(point.family))) if law else None
        numbers = ["" if value is None else f"{value:.4g}" for value in (point.loss, fitted, *health.values())]
        cells = (short(point.parameters), short(point.tokens), f"{point.flops:.3g}", str(point.n))
        shown.append((point.family, *cells, *numbers))
        facts = {name: value for name, value in vars(point).items() if name != "health"}
        exact.append(facts | {"law": fitted} | {name.rpartition("/")[2]: value for name, value in health.items()})
    labels = [METRICS[metric].label for metric in followed]
    head = ("family", "N", "D", "FLOPs", "runs", METRICS[ladder.metric].label, "law", *labels)
    return Table(
        "points", tuple(map(Column, head)), tuple(shown), tuple(exact), "Points", "scaling", style="tight",
        fold=f"All {len(shown)} points", on=("page", "file"),
    )  # fmt: skip


def _bounds(name: str, entry: Interval | None) -> dict[str, float | None]:
    ends = (entry.value, entry.low, entry.high) if entry else (None, None, None)
    return dict(zip((name, f"{name}_low", f"{name}_high"), ends, strict=True))


def _interval(entry: Interval, bound: float | None = None) -> str:
    told = ["0" if abs(value) < NOTHING else f"{value:.3g}".replace("-", "−")
            for value in (entry.value, entry.low, entry.high)]  # fmt: skip
    over = " (impossible)" if bound is not None and entry.value > bound else ""
    return f"{told[0]} [{told[1]}, {told[2]}]{over}"


def _short(entry: Interval) -> str:
    return f"{short(entry.value)} [{short(entry.low)}, {short(entry.high)}]"
