"""Recorded runs and the report that they give: 20 real runs of a toy, in records.jsonl, and what was written of them.

    python -m tests.analysis.test_golden [FOLDER]     write it anew, of the records in FOLDER if one is named

A change of the report shows as a difference here, to be looked at and then written anew. Numbers are compared to nine digits,
and coordinates of figures to a tenth of a point, so that another processor's last digits don't matter.
"""

import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis.report.files import as_markdown
from analysis.report.html import render
from analysis.study import Study
from analysis.table import tables_on
from analysis.verdicts.judge import judge
from core.records import run_record
from core.records.run_record import RunRecord
from tests.analysis.pages import charts_of, without_scripts

PLACE = Path(__file__).parent / "golden"
SVG = re.compile(r"<svg.*?</svg>", re.S)
NUMBER = re.compile(r"-?\d+\.\d+")


def recorded() -> Study:
    lines = (PLACE / "records.jsonl").read_text(encoding="utf-8").splitlines()
    study = Study.of([RunRecord.from_json(line) for line in lines])
    assert study is not None
    return study


def split(html: str) -> tuple[str, list[str]]:
    """A page without its scripts and figures, and the figures with their coordinates to a tenth."""
    html = without_scripts(html)
    figures = [NUMBER.sub(lambda found: f"{float(found[0]):.1f}", figure) for figure in SVG.findall(html)]
    return SVG.sub("<svg/>", html), figures


def close(one: Any, two: Any, rel: float = 1e-9) -> None:
    """Equal, numbers to nine digits or as said."""
    if isinstance(two, dict):
        assert list(one) == list(two)
        for key in two:
            close(one[key], two[key], rel)
    elif isinstance(two, list):
        assert len(one) == len(two)
        for left, right in zip(one, two, strict=True):
            close(left, right, rel)
    else:
        assert one == (pytest.approx(two, rel=rel, abs=1e-12) if isinstance(two, float) else two)


def test_the_records_give_the_recorded_judgement() -> None:
    study = recorded()
    assert (study.complete, study.missing) == (20, 0)
    close(json.loads(json.dumps(judge(study).to_dict())), json.loads((PLACE / "judgement.json").read_text()))


def test_the_records_give_the_recorded_page() -> None:
    study = recorded()
    html, wanted = render(study, judge(study)), (PLACE / "report.html").read_text(encoding="utf-8")
    (page, figures), (wanted_page, wanted_figures) = split(html), split(wanted)
    close(charts_of(html), json.loads((PLACE / "charts.json").read_text(encoding="utf-8")), rel=1e-4)
    assert page == wanted_page
    assert figures == wanted_figures and len(figures) >= 5


def test_the_records_give_the_recorded_tables() -> None:
    found = {f"{table.name}.md": as_markdown(table) for table in tables_on(judge(recorded()).tables, "file")}
    assert found == {path.name: path.read_text(encoding="utf-8") for path in PLACE.glob("tables/*.md")}


@pytest.mark.parametrize(("seed", "size"), [(0, 1e-15), (1, 1e-13), (2, 1e-11)])
def test_the_page_says_the_same_whatever_the_last_digits(seed: int, size: float) -> None:
    rng = np.random.default_rng(seed)

    def off(value: Any) -> Any:
        if isinstance(value, list):
            return [off(entry) for entry in value]
        return value * (1 + size * rng.uniform(-1, 1)) if isinstance(value, float) else value

    lines = (PLACE / "records.jsonl").read_text(encoding="utf-8").splitlines()
    read = [RunRecord.from_json(line) for line in lines]
    study = Study.of([
        replace(record, metrics={name: off(value) for name, value in record.metrics.items()},
                validation={name: [*map(off, column)] if name not in ("step", "tokens") else column
                            for name, column in record.validation.items()})
        for record in read
    ])  # fmt: skip
    assert study is not None
    assert split(render(study, judge(study)))[0] == split((PLACE / "report.html").read_text(encoding="utf-8"))[0]


def write(folder: Path | None) -> None:
    if folder is not None:
        lines = [run_record.read(path).to_json() for path in sorted(folder.rglob(run_record.FILE_NAME))]
        (PLACE / "records.jsonl").write_text("".join(f"{line.strip()}\n" for line in lines), encoding="utf-8")
    study = recorded()
    judgement = judge(study)
    (PLACE / "judgement.json").write_text(json.dumps(judgement.to_dict(), indent=1) + "\n", encoding="utf-8")
    html = render(study, judgement)
    (PLACE / "report.html").write_text(without_scripts(html), encoding="utf-8")
    (PLACE / "charts.json").write_text(json.dumps(charts_of(html), indent=1) + "\n", encoding="utf-8")
    for table in tables_on(judgement.tables, "file"):
        (PLACE / "tables" / f"{table.name}.md").write_text(as_markdown(table), encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
