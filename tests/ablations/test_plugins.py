"""Components of a declaration's own file and of plugins, through real worker processes."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from core import plugins
from core.config.model import ROUTERS
from tests.ablations.shell import ablate, process
from tests.registries import kept

SETTINGS = """{
        "data.corpus": "markov", "data.sequence_length": 16, "data.validation_sequences": 16,
        "model.hidden_size": 16, "model.num_heads": 1, "model.head_dim": 16, "model.num_experts": 4,
        "model.expert_width": 8, "trainer.steps": 2, "trainer.batch_size": 4, "trainer.validate_every": 2,
        "trainer.log_every": 1,
    }"""
ROUTER = """
from core.model.routing import TopKRouter, router


@router("flipped")
class Flipped(TopKRouter):
    def logits(self, x_ND, given):
        return {sign} * super().logits(x_ND, given)
"""
STUDY = f"""
from sweeps.spec import Ablation, Factor

ablation = Ablation(
    question="Does the sign matter?",
    factors=(Factor("model.router.kind", ("topk", "flipped")),),
    control={{"model.router.kind": "topk"}},
    base="tiny",
    seeds=range(3),
    plugins=PLUGINS,
    settings={SETTINGS},
)
"""


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No plugin is known or trusted, and the registry is as before after the test."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home"))
    monkeypatch.delenv(plugins.TRUSTED, raising=False)
    monkeypatch.setattr(plugins, "_modules", {})
    with kept(ROUTERS):
        yield


def records(folder: Path) -> list[dict]:
    return [json.loads(path.read_text()) for path in sorted(folder.rglob("record.json"))]


@pytest.mark.slow
def test_a_router_of_the_declarations_own_file_is_trained_by_workers_and_known_by_its_source(tmp_path: Path) -> None:
    declaration = tmp_path / "mine.py"
    declaration.write_text(ROUTER.format(sign="-1") + STUDY.replace("PLUGINS", "()"))
    done = process("run", "mine.py", "--workers", "2", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    found = records(tmp_path)
    assert [record["status"] for record in found] == ["complete"] * 6
    assert {record["config"]["model"]["router"]["kind"] for record in found} == {"topk", "flipped"}
    (copy,) = (tmp_path / "runs/mine/code").glob("mine.py-*/mine.py")
    assert copy.read_text() == declaration.read_text()

    # Another question and more seeds leave the runs as they are; other code is another run.
    declaration.write_text(declaration.read_text().replace("Does the sign matter?", "Does it?"))
    again = ablate("run", "mine.py", cwd=tmp_path)
    assert "0 runs trained, 6 recorded before" in again.stdout, again.stdout + again.stderr
    declaration.write_text(declaration.read_text().replace("-1 *", "-2 *"))
    planned = ablate("plan", "mine.py", cwd=tmp_path)
    assert "6 runs, 6 to do" in planned.stdout, planned.stdout + planned.stderr


@pytest.mark.slow
def test_a_plugin_file_whose_forward_pass_raises_fails_its_runs_alone(tmp_path: Path) -> None:
    (tmp_path / "parts.py").write_text(
        ROUTER.format(sign="-1").replace("return", "raise RuntimeError('mine')\n        return")
    )
    (tmp_path / "question.py").write_text(STUDY.replace("PLUGINS", '("parts.py",)'))
    done = process("run", "question.py", "--workers", "2", cwd=tmp_path)
    assert done.returncode == 1
    by_kind = {(r["config"]["model"]["router"]["kind"], r["status"], r["reason"]) for r in records(tmp_path)}
    assert by_kind == {("topk", "complete", None), ("flipped", "failed", "RuntimeError: mine")}


@pytest.mark.parametrize(
    ("named", "parts", "message"),
    [
        ("('nine.py',)", None, "plugins: 'nine.py' is neither a file or folder in"),
        ("('parts.py',)", "import no_such_module\n", "parts.py can't be imported, line 1: ModuleNotFoundError"),
        ("('parts.py',)", "x = 1\n", "model.router.kind: Invalid value 'flipped'"),
        ("'parts.py'", "x = 1\n", "plugins: "),
    ],
)
def test_what_cannot_be_imported_is_refused_before_anything_is_trained(
    tmp_path: Path, named: str, parts: str | None, message: str
) -> None:
    if parts is not None:
        (tmp_path / "parts.py").write_text(parts)
    (tmp_path / "question.py").write_text(STUDY.replace("PLUGINS", named))
    done = ablate("run", "question.py", cwd=tmp_path)
    assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_the_example_of_the_page_trains(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs/plugins.md").read_text(encoding="utf-8")
    (tmp_path / "sharper.py").write_text(page.partition("```python\n")[2].partition("```")[0])
    small = ["trainer.steps=2", "data.corpus=markov", "data.sequence_length=16", "data.validation_sequences=16"]
    done = process("run", "sharper.py", "--seeds", "3", "--workers", "2", *small, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    found = records(tmp_path)
    assert {(r["status"], r["config"]["model"]["router"]["options"]["temperature"]) for r in found} == {
        ("complete", 1.0),
        ("complete", 0.5),
    }
    refused = ablate("plan", "sharper.py", "model.router.options.temprature=2", cwd=tmp_path)
    assert refused.returncode == 2 and "did you mean model.router.options.temperature" in refused.stderr
