"""A report's tables and figures as files for a paper: CSV, Markdown and LaTeX; SVG, PNG and PDF."""

import csv
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

from analysis.formatting import coverage, crossed, number, pvalue, ratio, signed
from analysis.report.html import pictures
from analysis.statistics.compare import PairedEffect
from analysis.study import Study
from analysis.table import Sheet
from analysis.verdicts import decoding
from analysis.verdicts import ladder as ladder_words
from analysis.verdicts.comparisons import MetricTable, Planned, Row
from analysis.verdicts.judge import Judgement
from core.records.record import write_atomically

LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "−": "$-$", "<": "$<$", ">": "$>$", "|": "$|$",
}  # fmt: skip
EXACT = ("n", "estimate", "low", "high", "pvalue", "effect_size", "correlation")
FORMATS = ("svg", "png", "pdf")


def write_files(study: Study, judgement: Judgement, folder: Path) -> list[Path]:
    """Write every table and figure of a report below `folder`, and return the files.

    CSV has the numbers in full; Markdown and LaTeX (booktabs) round as the report does.
    """
    written = []
    folder.mkdir(parents=True, exist_ok=True)
    writers: dict[str, Callable[[Sheet], str]] = {"csv": as_csv, "md": as_markdown, "tex": as_latex}
    for sheet in sheets(judgement):
        for suffix, text in writers.items():
            written.append(folder / f"{sheet.name}.{suffix}")
            write_atomically(written[-1], text(sheet))
    for name, picture in pictures(study, judgement).items():
        for suffix in FORMATS:
            written.append(folder / f"{name}.{suffix}")
            picture.save(written[-1])
    return written


def sheets(judgement: Judgement) -> list[Sheet]:
    """The report's tables: verdicts by metric, planned contrasts, main effects, interactions, looks, learning speed;
    or a ladder's."""
    if judgement.ladder:
        return ladder_words.sheets(judgement.ladder)
    alpha, margin = judgement.design["alpha"], judgement.tables[0].margin
    told = ("effect", coverage(alpha), "Holm p", "n")
    found = [_verdicts(table, alpha) for table in judgement.tables]
    found += [decoding.sheet(judgement.decoding)] if judgement.decoding else []
    where = judgement.tables[0].title
    if judgement.contrasts:
        rows = [
            (row.label, *_effect(row.effect, row.p_holm, alpha, margin), row.verdict) for row in judgement.contrasts
        ]
        exact = [{"of": row.label, **_exact(row.effect), **_judged(row)} for row in judgement.contrasts]
        found.append(Sheet("contrasts", (where, *told, "verdict"), tuple(rows), tuple(exact)))
    for name, family in (("main-effects", judgement.main_effects), ("interactions", judgement.interactions)):
        if family is not None:
            rows = [(crossed(each), *_effect(each.effect, each.p_holm, alpha)) for each in family.contrasts]
            exact = [{"of": crossed(each), **_exact(each.effect), "p_holm": each.p_holm} for each in family.contrasts]
            found.append(Sheet(name, (where, *told), tuple(rows), tuple(exact)))
    if judgement.course is not None:
        steps = [(look.seeds, step) for look in judgement.course.looks for step in look.steps]
        rows = [
            (f"{n} seeds: {step.label}", signed(step.estimate, margin), pvalue(step.p_holm, alpha), step.decision)
            for n, step in steps
        ]
        exact = [{"seeds": n, **vars(step), "arms": " − ".join(step.arms)} for n, step in steps]
        found.append(Sheet("looks", (where, "effect", "Holm p", "decision"), tuple(rows), tuple(exact)))
    speeds = [(row, row.speed) for row in judgement.speeds if row.speed is not None]
    if speeds:
        rows = [
            (
                row.label,
                ratio(speed.share),
                f"[{ratio(speed.low)}, {ratio(speed.high)}]",
                pvalue(row.p_holm, alpha),
                str(speed.n),
            )
            for row, speed in speeds
        ]
        exact = [{"arm": row.arm, "label": row.label, **vars(speed), "p_holm": row.p_holm} for row, speed in speeds]
        head = ("tokens for the same value", "share of the control's", *told[1:])
        found.append(Sheet("learning-speed", head, tuple(rows), tuple(exact)))
    return found


def as_csv(sheet: Sheet) -> str:
    """A row for each comparison, numbers in full; empty where there is none."""
    out = io.StringIO()
    writer = csv.DictWriter(out, list(sheet.exact[0]), lineterminator="\n")
    writer.writeheader()
    for row in sheet.exact:
        writer.writerow({name: "" if value is None else value for name, value in row.items()})
    return out.getvalue()


def as_markdown(sheet: Sheet) -> str:
    """A table as the report shows it."""
    rows = [[cell.replace("|", "\\|") for cell in row] for row in sheet.shown]
    lines = [" | ".join(row) for row in (sheet.head, ["---"] * len(sheet.head), *rows)]
    return "\n".join(f"| {line} |" for line in lines) + "\n"


def as_latex(sheet: Sheet) -> str:
    """A tabular as the report shows it; needs the package booktabs."""
    head, *body = (" & ".join(_escaped(cell) for cell in row) + r" \\" for row in (sheet.head, *sheet.shown))
    columns = "".join("l" if name in (sheet.head[0], "verdict") else "r" for name in sheet.head)
    top, bottom = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule"], [r"\bottomrule", r"\end{tabular}"]
    return "\n".join([*top, head, r"\midrule", *body, *bottom]) + "\n"


def _verdicts(table: MetricTable, alpha: float) -> Sheet:
    shown, exact = [], []
    for row in table.rows:
        cells = _effect(row.effect, row.p_holm, alpha, table.margin) if row.effect else ("", "", "", str(row.n))
        shown.append((row.label, number(row.mean), *cells, row.verdict))
        facts = {"arm": row.arm, "label": row.label, "mean": row.mean, "sd": row.sd}
        exact.append(facts | _exact(row.effect) | {"n": row.effect.n if row.effect else row.n} | _judged(row))
    name = table.metric.replace("/", "-").replace("@", "-at-")
    return Sheet(
        name, (table.title, "mean", "effect", coverage(alpha), "Holm p", "n", "verdict"), tuple(shown), tuple(exact)
    )


def _effect(
    effect: PairedEffect | None, p_holm: float | None, alpha: float, margin: float | None = None
) -> tuple[str, ...]:
    if effect is None:
        return ("", "", "", "")
    interval = f"[{signed(effect.low)}, {signed(effect.high)}]"
    return (signed(effect.estimate, margin), interval, pvalue(p_holm, alpha), str(effect.n))


def _exact(effect: PairedEffect | None) -> dict[str, Any]:
    return {name: getattr(effect, name) if effect is not None else None for name in EXACT}


def _judged(row: Row | Planned) -> dict[str, Any]:
    return {"p_holm": row.p_holm, "p_equivalence": row.p_equivalence, "verdict": row.verdict}


def _escaped(text: str) -> str:
    return "".join(LATEX.get(character, character) for character in text)
