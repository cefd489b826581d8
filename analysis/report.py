"""The report: one self-contained HTML file, and the verdict table on a terminal. Both from records alone."""

import math
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
from markupsafe import Markup
from rich.console import Group
from rich.table import Table
from rich.text import Text

from analysis import ladder_plots, ladder_words, plots
from analysis.frame import Study
from analysis.tables import MetricTable, Planned, Row
from analysis.verdicts import Judgement
from core.metrics import METRICS
from core.records import write_atomically

if TYPE_CHECKING:
    from analysis.factorial import Contrast

VERDICT_STYLES = {"better": "green", "worse": "red", "equivalent": "blue"}


def write_report(study: Study, judgement: Judgement, path: Path) -> None:
    """Write the report; equal records give equal bytes."""
    write_atomically(path, render(study, judgement))


def render(study: Study, judgement: Judgement) -> str:
    """The report as HTML that asks for nothing outside itself; every text from configs and records is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": number,
        "signed": signed,
        "pvalue": pvalue,
        "crossed": crossed,
        "correlation": correlation,
    }
    finished = [record for record in study.cells.values() if record.status == "complete"]
    drawn = pictures(study, judgement)
    ladder = judgement.ladder
    return environment.get_template("ladder.html.jinja" if ladder else "report.html.jinja").render(
        sheets=ladder_words.sheets(ladder) if ladder else [],
        study=study,
        judgement=judgement,
        design=study.design,
        report_command=_report_command(study.design["command"]),
        figures={name: Markup(picture.svg()) for name, picture in drawn.items()},
        runs=_runs(study),
        seeds={name: picture.seed for name, picture in drawn.items()},
        scale=_scale(study, finished),
        provenance=_provenance(finished),
        metrics=METRICS,
        kind=_kind,
    )


def terminal_table(judgement: Judgement, *, titled: bool = True) -> Group:
    """Headline and verdict tables for a terminal of 80 columns. titled: below the question."""
    title = [Text(judgement.question, style="bold")] if titled else []
    parts: list[Any] = [*title, Text(judgement.headline), Text()]
    for table in judgement.tables:
        parts += [_terminal_metric(table), Text()]
    parts += _terminal_ladder(judgement)
    for further in (_terminal_contrasts, _terminal_course, _terminal_speeds, _terminal_factorial):
        parts += further(judgement)
    counts = judgement.counts
    parts.append(Text(f"runs: {counts['complete']} complete, {counts['failed']} failed, {counts['missing']} missing"))
    parts += [Text(f"set aside: {n} {reason}") for reason, n in judgement.set_aside.items()]
    parts += [Text(f"unreadable: {line}", style="red") for line in judgement.unreadable]
    notes = {f"{row.label}: {note}": None for table in judgement.tables for row in table.rows for note in row.notes}
    parts += [Text(f"note: {note}") for note in notes]
    return Group(*parts)


def _terminal_metric(table: MetricTable) -> Table:
    unit = f", {table.unit}" if table.unit else ""
    role = "" if table.primary else " (secondary)"
    out = Table(box=None, pad_edge=False, title=f"{table.label}{unit}{role}", title_justify="left", title_style="dim")
    out.add_column("arm", overflow="fold")
    for name in ("mean", "effect", "95 % interval", "Holm p", "n"):
        out.add_column(name, justify="right", no_wrap=True)
    out.add_column("verdict", overflow="fold")
    for row in table.rows:
        effect = row.effect
        cells = [signed(effect.estimate), f"{signed(effect.low)} {signed(effect.high)}"] if effect else ["", ""]
        n = effect.n if effect else row.n
        style = VERDICT_STYLES.get(_kind(row), "")
        out.add_row(
            Text(row.label), number(row.mean), *cells, pvalue(row.p_holm), str(n), Text(row.verdict, style=style)
        )
    return out


def _terminal_ladder(judgement: Judgement) -> list[Any]:
    """All tables of a ladder but that of its points, which the page has."""
    parts: list[Any] = []
    for sheet in ladder_words.sheets(judgement.ladder) if judgement.ladder else []:
        if sheet.name != "points":
            out = _terminal_plain("", sheet.head, fold=True)  # a table's own title would be cut to its width
            for row in sheet.shown:
                out.add_row(*map(Text, row))
            parts += [Text(sheet.title, style="dim"), out, Text()]
    if judgement.ladder:
        parts += [Text(line) for line in ladder_words.distances(judgement.ladder)]
        parts += [Text(f"note: {note}") for note in judgement.ladder.notes]
    return parts


def _terminal_contrasts(judgement: Judgement) -> list[Any]:
    rows = [row for row in judgement.contrasts if row.effect is not None]
    if not rows:
        return []
    unit = judgement.tables[0].unit
    out = _terminal_plain(
        f"planned contrasts in {judgement.tables[0].label}{f', {unit}' if unit else ''}",
        ("of", "effect", "95 % interval", "Holm p", "n"),
    )
    out.add_column("verdict", overflow="fold")
    for row in rows:
        assert row.effect is not None
        interval = f"{signed(row.effect.low)} {signed(row.effect.high)}"
        cells = (signed(row.effect.estimate), interval, pvalue(row.p_holm), str(row.effect.n))
        out.add_row(Text(row.label), *cells, Text(row.verdict))
    return [out, Text()]


def _terminal_course(judgement: Judgement) -> list[Any]:
    if judgement.course is None or not judgement.course.looks:
        return []
    out = _terminal_plain("bought until decided", ("look", "open"))
    out.add_column("decided", overflow="fold")
    for look in judgement.course.looks:
        left = sum(step.decision == "open" for step in look.steps)
        out.add_row(f"{look.seeds} seeds", str(left), Text("; ".join(look.decided)))
    return [out, Text(f"{judgement.course.kept}"), Text()]


def _terminal_speeds(judgement: Judgement) -> list[Any]:
    rows = [row for row in judgement.speeds if row.speed is not None]
    if not rows:
        return []
    title = "tokens for the same value, as a share of the control's (below 1: learns faster)"
    out = _terminal_plain(title, ("arm", "share", "95 % interval", "Holm p", "as good"))
    for row in rows:
        assert row.speed is not None
        share, interval = f"{row.speed.share:.2f}", f"{row.speed.low:.2f} {row.speed.high:.2f}"
        out.add_row(Text(row.label), share, interval, pvalue(row.p_holm), f"{row.speed.reached} of {row.speed.n}")
    return [out, Text()]


def _terminal_factorial(judgement: Judgement) -> list[Any]:
    if judgement.interactions is None:
        note = judgement.factorial_note
        return [Text(f"no main effects and interactions: {note}"), Text()] if note else []
    table, parts = judgement.tables[0], []
    where = f"{table.label}{f', {table.unit}' if table.unit else ''}"
    for title, family in (
        (f"main effects in {where}: averaged over the other factors", judgement.main_effects),
        (f"interactions in {where}: how much one changes the other's effect", judgement.interactions),
    ):
        out = _terminal_plain(title, ("of", "effect", "95 % interval", "Holm p"))
        for contrast in family.contrasts if family else ():
            interval = f"{signed(contrast.effect.low)} {signed(contrast.effect.high)}"
            out.add_row(Text(crossed(contrast)), signed(contrast.effect.estimate), interval, pvalue(contrast.p_holm))
        parts += [out, Text()]
    return parts


def _terminal_plain(title: str, columns: tuple[str, ...], *, fold: bool = False) -> Table:
    out = Table(box=None, pad_edge=False, title=title, title_justify="left", title_style="dim")
    for place, name in enumerate(columns):
        out.add_column(name, justify="right" if place else "left", no_wrap=bool(place) and not fold, overflow="fold")
    return out


def crossed(contrast: "Contrast") -> str:
    """A contrast's factors in words: each from its reference to its level."""
    steps = zip(contrast.factors, contrast.reference, contrast.levels, strict=True)
    return " x ".join(f"{name} {base} → {level}" for name, base, level in steps)


def number(value: float | None) -> str:
    """Four significant digits; nothing for what is missing."""
    return "" if value is None else f"{value:.4g}"


def signed(value: float | None) -> str:
    """Two significant digits with a sign: effects and their bounds."""
    return "" if value is None else f"{value:+.2g}".replace("-", "−")


def correlation(value: float) -> str:
    """Two digits; nothing where a side doesn't vary."""
    return "" if math.isnan(value) else f"{value:.2f}".replace("-", "−")


def pvalue(value: float | None) -> str:
    """Two digits, and nothing below 0.0001."""
    return "" if value is None else "<.0001" if value < 1e-4 else f"{value:.2g}"


def _kind(row: Row | Planned) -> str:
    return row.verdict.split(" ")[0].rstrip(",")


def pictures(study: Study, judgement: Judgement) -> dict[str, plots.Picture]:
    """The report's figures by name, as far as the records have what they show."""
    if judgement.ladder:
        return ladder_plots.pictures(judgement.ladder)
    metric, arms = judgement.tables[0], list(study.labels.values())
    figures: dict[str, plots.Picture] = {}
    if any(row.effect for row in metric.rows):
        figures["effects"] = plots.effects(judgement.tables)
    curves = plots.bands(study, "validation", metric.metric)
    if curves:
        differences = plots.bands(study, "validation", metric.metric, minus_control=True)
        figures["curves"] = plots.lines(
            "curves",
            {f"{metric.label}, {metric.unit}".rstrip(", "): curves},
            arms,
            f"{metric.label} on validation against training tokens",
        )
        if differences:
            figures["differences"] = plots.lines(
                "differences",
                {f"{metric.label}: arm − control, {metric.unit}".rstrip(", "): differences},
                arms,
                f"paired difference of {metric.label} from the control against training tokens",
                zero=True,
            )
    loads = plots.final_loads(study)
    if loads:
        figures["load"] = plots.expert_load(loads)
    figures |= _routing_figures(study)
    by_timestep = plots.timestep_loads(study)
    if by_timestep:
        figures["timestep"] = plots.timestep_load(*by_timestep)
    return figures


def _routing_figures(study: Study) -> dict[str, plots.Picture]:
    figures: dict[str, plots.Picture] = {}
    arms = list(study.labels.values())
    vio = plots.bands(study, "validation", "load/max_vio")
    if vio:
        figures["max_vio"] = plots.lines("maxvio", {"MaxVio": vio}, arms, "MaxVio against training tokens")
    losses = {
        "load-balancing loss (1 = balanced)": plots.bands(study, "curve", "train/load_balancing"),
        "router z-loss": plots.bands(study, "curve", "train/z_loss"),
    }
    if all(losses.values()):
        figures["auxiliary"] = plots.lines("aux", losses, arms, "Auxiliary losses against training tokens")
    return figures


def _runs(study: Study) -> list[dict[str, Any]]:
    rows = []
    for arm in study.arms:
        for seed in study.bought(arm):
            record = study.cells.get((arm, seed))
            row: dict[str, Any] = {"arm": study.labels[arm], "seed": seed, "hash": ""}
            row |= {"status": "missing", "reason": "not recorded"}
            if record is not None:
                value = record.metrics.get(study.design["metric"])
                row |= {"status": record.status, "reason": record.reason or "", "hash": record.run_hash}
                row |= {"value": value, "wall_time_s": record.wall_time_s, "rate": record.tokens_per_second}
            rows.append(row)
    return rows


def _report_command(command: str) -> str:
    """`ablate report` for what `ablate run` was typed as: it takes a name, a size and a folder of runs, and no settings."""
    words = shlex.split(command)
    given = [
        f"{option} {shlex.quote(words[words.index(option) + 1])}" for option in ("--size", "--out") if option in words
    ]
    return " ".join(["ablate report", shlex.quote(words[2]), *given])


def _scale(study: Study, finished: list[Any]) -> dict[str, Any] | None:
    if not finished:
        return None
    config = finished[0].config
    tokens = [
        record.config["trainer"]["steps"]
        * record.config["trainer"]["batch_size"]
        * record.config["data"]["sequence_length"]
        for record in finished
    ]
    total = [arm["parameters"]["total"] for arm in study.design["arms"]]
    active = [arm["parameters"]["active"] for arm in study.design["arms"]]
    return {
        "total": _range(total),
        "active": _range(active),
        "tokens": _range(tokens),
        "corpus": config["data"]["corpus"],
        "flops": f"{sum(record.flops for record in finished):.2g}",
        "hours": f"{sum(record.wall_time_s for record in finished) / 3600:.2g}",
    }


def _range(values: list[int]) -> str:
    low, high = min(values), max(values)
    return f"{low:,}" if low == high else f"{low:,} – {high:,}"


def _provenance(finished: list[Any]) -> Mapping[str, list[str]]:
    """Everything the runs say of where they came from, each value with how many runs say it."""
    seen: dict[str, dict[str, int]] = {}
    for record in finished:
        facts = {k: v for k, v in record.provenance.items() if k != "packages"}
        facts |= record.provenance.get("packages", {}) | {"data fingerprint": record.data_fingerprint}
        for key, value in facts.items():
            counts = seen.setdefault(key, {})
            counts[str(value)] = counts.get(str(value), 0) + 1
    many = len(finished)
    return {
        key: [value if n == many else f"{value} ({n} of {many} runs)" for value, n in sorted(counts.items())]
        for key, counts in seen.items()
    }
