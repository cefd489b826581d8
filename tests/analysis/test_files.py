"""Tables and figures as files: numbers in full, text escaped, equal records equal bytes."""

import csv
import io

import pytest

from analysis.files import as_csv, as_latex, as_markdown, write_files
from analysis.frame import Study
from analysis.verdicts import judge
from tests.analysis.conftest import make_design


@pytest.fixture
def study(records_of) -> Study:
    design = make_design()
    design["arms"][1]["label"] = "50 % of_it | $x$ & \\more"
    return Study.of(records_of(design, {"arm1": -0.3}))


def test_csv_has_the_numbers_in_full(study) -> None:
    table = judge(study).tables[0]
    control, better, _ = csv.DictReader(io.StringIO(as_csv(table)))
    assert float(better["estimate"]) == table.rows[1].effect.estimate
    assert (better["label"], better["verdict"], better["n"]) == (table.rows[1].label, "better", "6")
    assert control["estimate"] == "" and float(control["mean"]) == table.rows[0].mean


def test_text_is_escaped(study) -> None:
    table = judge(study).tables[0]
    assert r"50 \% of\_it $|$ \$x\$ \& \textbackslash{}more &" in as_latex(table)
    assert as_latex(table).count(r"\\") == 1 + len(table.rows) and "−" not in as_latex(table)
    assert "50 % of_it \\| $x$ & \\more" in as_markdown(table)
    assert len({line.replace("\\|", "").count("|") for line in as_markdown(table).splitlines()}) == 1


def test_all_tables_and_figures_are_written_the_same_twice(study, tmp_path) -> None:
    first, second = (write_files(study, judge(study), tmp_path / name) for name in ("one", "two"))
    assert [path.name for path in first] == [path.name for path in second]
    assert {path.suffix for path in first} == {".csv", ".md", ".tex", ".svg", ".png", ".pdf"}
    assert all(a.read_bytes() == b.read_bytes() for a, b in zip(first, second, strict=True))
    svg = (tmp_path / "one" / "effects.svg").read_text()
    assert "#040506" not in svg and "currentColor" not in svg
