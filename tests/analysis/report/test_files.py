"""Tables and figures as files: numbers in full, text escaped, equal records equal bytes."""

import csv
import io

import pytest

from analysis.report.files import as_csv, as_latex, as_markdown, write_files
from analysis.study import Study
from analysis.table import tables_on
from analysis.verdicts.judge import judge
from tests.analysis.conftest import make_design


@pytest.fixture
def study(records_of) -> Study:
    design = make_design()
    design["arms"][1]["label"] = "50 % of_it | $x$ & \\more"
    return Study.of(records_of(design, {"arm1": -0.3}))


def test_csv_has_the_numbers_in_full(study) -> None:
    judgement = judge(study)
    table = judgement.comparisons[0]
    control, better, _ = csv.DictReader(io.StringIO(as_csv(judgement.tables[0])))
    assert float(better["estimate"]) == table.rows[1].effect.estimate
    assert (better["label"], better["verdict"], better["n"]) == (table.rows[1].label, "better", "6")
    assert control["estimate"] == "" and float(control["mean"]) == table.rows[0].mean


def test_text_is_escaped(study) -> None:
    table = tables_on(judge(study).tables, "file")[0]
    assert r"50 \% of\_it $|$ \$x\$ \& \textbackslash{}more &" in as_latex(table)
    assert as_latex(table).count(r"\\") == 1 + len(table.shown("file")) and "−" not in as_latex(table)
    assert "50 % of_it \\| $x$ & \\more" in as_markdown(table)
    assert len({line.replace("\\|", "").count("|") for line in as_markdown(table).splitlines()}) == 1


def test_all_tables_and_figures_are_written_the_same_twice(study, tmp_path) -> None:
    first, second = (write_files(judge(study), tmp_path / name) for name in ("one", "two"))
    assert [path.name for path in first] == [path.name for path in second]
    assert {path.suffix for path in first} == {".csv", ".md", ".tex", ".svg", ".png", ".pdf"}
    assert all(a.read_bytes() == b.read_bytes() for a, b in zip(first, second, strict=True))
    svg = (tmp_path / "one" / "effects.svg").read_text()
    assert "#040506" not in svg and "currentColor" not in svg


def test_every_table_of_the_report_is_among_them(records_of) -> None:
    design = make_design(arms=4) | {"contrasts": [["arm1", "arm2"]]}
    design["factors"] = [{"key": "a", "label": "a", "levels": [0, 1]}, {"key": "b", "label": "b", "levels": [0, 1]}]
    for place, arm in enumerate(design["arms"]):
        arm["settings"] = {"a": place % 2, "b": place // 2}
    judgement = judge(Study.of(records_of(design, {"arm1": -0.3})))
    found = {table.name: table for table in tables_on(judgement.tables, "file")}
    assert list(found) == ["val-nelbo", "load-max_vio", "contrasts", "learning-speed", "main-effects", "interactions"]
    for table in found.values():
        assert as_csv(table).count("\n") == 1 + len(table.shown("file")) and as_latex(table) and as_markdown(table)
        assert all(len(row) == len(table.head("file")) for row in table.shown("file"))
