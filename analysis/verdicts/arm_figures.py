"""Figures of a study of arms: effects, curves, expert load and experts by timestep."""

from collections.abc import Iterator, Sequence

import numpy as np

from analysis.figure import Effect, Figure, Forest, Heat, Lines, Series, View
from analysis.formatting import coverage
from analysis.study import Study
from analysis.verdicts.comparison_tables import tone
from analysis.verdicts.comparisons import MetricTable
from core.records.metrics import METRICS, metrics_in

MOST_RUNS = 200  # whose single lines are on the page
TRAINING = {
    "train/nelbo": "NELBO on training batches, nats/token",
    "train/load_balancing": "load-balancing loss (1 = balanced)",
    "train/z_loss": "router z-loss",
    "train/gradient_norm": "gradient norm",
}
PICTURES = {"load/max_vio": "max_vio", "train/load_balancing": "auxiliary", "train/z_loss": "auxiliary"}


def arm_figures(study: Study, tables: Sequence[MetricTable]) -> list[Figure]:
    """The figures, as far as the records have what they show."""
    found = (effects(tables, study.design.alpha), curves(study, tables), expert_load(study), experts_by_timestep(study))
    return [figure for figure in found if figure is not None]


def effects(tables: Sequence[MetricTable], alpha: float) -> Figure | None:
    """Every arm minus the control with its interval, by metric; None before any comparison."""
    if not any(row.effect for row in tables[0].rows):
        return None
    panels = []
    for table in tables:
        rows = tuple(
            Effect(row.label, tone(row.verdict), row.verdict, row.n if row.effect is None else row.effect.n,
                   (row.effect.estimate, row.effect.low, row.effect.high) if row.effect else None)
            for row in table.rows
            if row.verdict != "control"
        )  # fmt: skip
        panels.append((table.label, table.unit, table.goal, table.margin, rows))
    metrics = ", ".join(table.label for table in tables)
    alt = f"Effect of each arm against the control with {coverage(alpha)}s: {metrics}"
    band = "; the band is the equivalence margin" if tables[0].margin else ""
    intro = f"Points are mean paired differences, bars their {coverage(alpha)}s{band}."
    return Figure("effects", "tests", alt, Forest(tuple(panels)), "Effects", intro)


def curves(study: Study, tables: Sequence[MetricTable]) -> Figure | None:
    """Metrics on validation, their paired differences from the control, and training losses against tokens."""
    first, views = tables[0], []
    for table in tables:
        primary = table.metric == first.metric
        views.append(_view(study, "validation", table.metric, table.title, "curves" if primary else ""))
        views.append(
            _view(study, "validation", table.metric, table.title, "differences" if primary else "", minus=table)
        )
    judged = [table.metric for table in tables]
    views += [
        _view(study, "validation", name, METRICS[name].label) for name in metrics_in("chart") if name not in judged
    ]
    views += [_view(study, "curve", name, label) for name, label in TRAINING.items()]
    alts = {
        "curves": f"{first.label} on validation against {study.axis}",
        "differences": f"paired difference of {first.label} from the control against {study.axis}",
        "max_vio": f"MaxVio against {study.axis}",
        "auxiliary": f"Auxiliary losses against {study.axis}",
    }
    shown = tuple(view for view in views if view is not None)
    primary = any(view.picture == "curves" for view in shown)
    intro = (
        "Mean over seeds; bands are one standard deviation between seeds. Differences are paired with the control seed by "
        "seed: what pairing removes is the difference between the two bands."
    )
    caption = (
        "Training losses are measured on training batches, as means over layers where they are the router's, whether or "
        "not they are trained on."
    )
    alt = alts["curves"] if primary else f"Curves of each arm against {study.axis}"
    return Figure("curves", "curves", alt, Lines(shown, alts), "Curves", intro, caption) if shown else None


def _view(
    study: Study, table: str, column: str, label: str, picture: str = "", *, minus: MetricTable | None = None
) -> View | None:
    """A column against tokens, or its paired difference from the control."""
    series = tuple(bands(study, table, column, minus_control=minus is not None))
    if not series:
        return None
    title = f"{label}: arm − control" if minus else label
    panel = f"{minus.label}: arm − control, {minus.unit}".rstrip(", ") if minus else ""
    picture = picture or ("" if minus else PICTURES.get(column, ""))
    return View(title, study.axis, title, series, picture, panel, zero=minus is not None)


def bands(study: Study, table: str, column: str, *, minus_control: bool = False) -> Iterator[Series]:
    """A logged column of each arm against tokens: mean and standard deviation over seeds, and its single seeds.

    table: "curve" or "validation". minus_control: paired differences from the control, seed by seed.
    """
    control = study.design.control
    base = study.series(control, table, column)
    for place, arm in enumerate(study.arms):
        by_seed = study.series(arm, table, column)
        if minus_control:
            if arm == control or study.incomparable(column, arm, control):
                continue
            by_seed = {
                s: (x, y - base[s][1]) for s, (x, y) in by_seed.items() if s in base and np.array_equal(base[s][0], x)
            }
        values = {seed: y for seed, (_, y) in by_seed.items()}
        if len({len(y) for y in values.values()}) != 1:
            continue  # nothing finished, or runs logged at different steps
        values_ST = np.stack(list(values.values()))
        mean_T = values_ST.mean(0)
        sd_T = values_ST.std(0, ddof=1) if len(values_ST) > 1 else 0 * mean_T
        x_T = next(iter(by_seed.values()))[0]
        seeds = values if len(study.cells) <= MOST_RUNS else {}
        yield Series(study.labels[arm], place, x_T, mean_T, mean_T - sd_T, mean_T + sd_T, seeds)


def expert_load(study: Study) -> Figure | None:
    """Each arm's expert load along training, mean over its finished seeds; experts ordered by load in each run and layer."""
    recorded = {arm: [r.expert_load for r in study.records_of(arm) if r.status == "complete"] for arm in study.arms}
    loads = {arm: [load for load in each if load.get("load")] for arm, each in recorded.items()}
    loads = {arm: each for arm, each in loads.items() if each}
    if not loads:
        return None
    steps = next(iter(loads.values()))[0]["step"]
    # No slider goes through steps that differ; the last ones are drawn.
    sliding = all(
        load["step"] == steps and np.shape(load["load"]) == np.shape(each[0]["load"])
        for each in loads.values()
        for load in each
    )
    panels = []
    for arm, each in loads.items():
        frames = [np.array(load["load"] if sliding else load["load"][-1:], float) for load in each]
        panels.append(
            (study.labels[arm], "all tokens", np.mean([np.sort(f, axis=-1)[..., ::-1] for f in frames], axis=0))
        )
    data = Heat("training step", [f"{step:g}" for step in steps], tuple(panels), -1, ranked=True, sliding=sliding)
    alt = "Expert load by layer and expert for each arm, relative to the balanced share"
    intro = (
        "Share of assignments that the experts of a layer get on the validation set, the heaviest first, mean over seeds, "
        "relative to the balanced share."
    )
    return Figure("load", "routing", alt, data, "Expert load", intro)


def experts_by_timestep(study: Study) -> Figure | None:
    """Each arm's expert load by timestep at the end, of visible and of masked tokens.

    Of the first seed that all arms with such a load finished: experts of different seeds can't be averaged.
    """
    kept: dict[str, dict[int, np.ndarray]] = {}
    for arm in study.arms:
        for record in study.records_of(arm):
            if record.status == "complete" and "load_by_timestep" in record.routing:
                load = np.array(record.routing["load_by_timestep"], dtype=float)
                kept.setdefault(study.labels[arm], {})[record.seed] = load
    seed = next((s for s in study.design.seeds if kept and all(s in own for own in kept.values())), None)
    if seed is None:
        return None
    loads = {label: own[seed] for label, own in kept.items()}
    bins = next(iter(loads.values())).shape[1]
    panels = tuple(
        (label, words, np.moveaxis(load_LTME[:, :, status], 1, 0))
        for label, load_LTME in loads.items()
        for status, words in enumerate(("visible tokens", "masked tokens"))
    )
    values = [f"{place / bins:.2g} to {(place + 1) / bins:.2g}" for place in range(bins)]
    alt = "Share of each expert by timestep, for each arm and layer, visible and masked tokens"
    intro = (
        "Share of the assignments of visible and of masked tokens that each expert gets, by timestep, relative to the "
        f"balanced share, at the end of seed {seed}. Tokens differ between timesteps too: whether experts depend on the "
        "timestep itself is what `ablate probe routing` tests."
    )
    data = Heat("timestep t", values, panels, bins // 2, seed=seed)
    return Figure("timestep", "routing", alt, data, "Experts by timestep", intro)
