"""docs/notebook.ipynb, executed by Jupyter's own client on recorded runs; and records against their JSON Schema."""

import json
from pathlib import Path

import pytest

from core.records import run_record
from tests.analysis.test_golden import recorded
from tests.reference import DOCS


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of recorded runs."""
    for record in recorded().cells.values():
        run_record.write(record, tmp_path / record.run_hash)
    return tmp_path


@pytest.mark.slow
def test_the_notebook_runs_from_records_to_a_figure(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    monkeypatch.setenv("ABLATE_STUDY", str(folder))
    notebook = nbformat.read(DOCS / "notebook.ipynb", as_version=4)
    nbclient.NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(Path.cwd())}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    html = "".join(output["data"].get("text/html", "") for output in outputs if "data" in output)
    assert recorded().design.question in html and "<table" in html
    assert any("image/png" in output.get("data", {}) for output in outputs)


def test_records_and_designs_keep_their_published_schemas() -> None:
    validators = pytest.importorskip("jsonschema")
    schemas = {name: json.loads((DOCS / f"schemas/{name}.schema.json").read_text()) for name in ("record", "design")}
    study = recorded()
    record = next(iter(study.cells.values()))
    validators.validate(json.loads(record.to_json()), schemas["record"])
    validators.validate(study.design.to_json(), schemas["design"])
    with pytest.raises(validators.ValidationError):
        validators.validate(json.loads(record.to_json()) | {"seed": "first"}, schemas["record"])
