"""Every format of logs, written by its own library and read back."""

import json
from types import SimpleNamespace

import pytest

from core.errors import UserError
from sweeps.logs.sources import read_logs
from sweeps.logs.tensorboard import matched

ROWS = [{"method": "a", "seed": 0, "loss": 2.5}, {"method": "b", "seed": 0, "loss": 2.25}]


def values(log):
    return [dict(row.values) for row in log.rows]


def test_csv_and_tsv(tmp_path):
    (tmp_path / "runs.csv").write_text('method,seed,loss\n"a",0,2.5\n\nb,0,2.25\n', encoding="utf-8-sig")
    log = read_logs(str(tmp_path / "runs.csv"))
    assert values(log) == [{key: str(value) for key, value in row.items()} for row in ROWS]
    assert [row.place for row in log.rows] == ["runs.csv, line 2", "runs.csv, line 4"]
    (tmp_path / "runs.tsv").write_text("seed\tloss\n0\t2.5\n")
    assert values(read_logs(str(tmp_path / "runs.tsv"))) == [{"seed": "0", "loss": "2.5"}]


def test_json_lines(tmp_path):
    path = tmp_path / "runs.jsonl"
    path.write_text('{"config": {"lr": 0.1, "model": {"top_k": 2}}, "loss": NaN}\n\n{"loss": 1}\n')
    first, second = values(read_logs(str(path)))
    assert first["config.model.top_k"] == 2 and first["loss"] != first["loss"]
    assert second == {"loss": 1}


def test_parquet(tmp_path):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pa.Table.from_pylist(ROWS), tmp_path / "runs.parquet")
    assert values(read_logs(str(tmp_path / "runs.parquet"))) == ROWS


def test_tensorboard_events(tmp_path):
    pytest.importorskip("tensorboard")
    from torch.utils.tensorboard import SummaryWriter

    for arm, seed in (("a", 0), ("b", 1)):
        with SummaryWriter(str(tmp_path / arm / f"seed{seed}")) as writer:
            for step in (1, 2):
                writer.add_scalar("val/loss", 3.0 - step + seed, step)
    log = read_logs(str(tmp_path), "{arm}/seed{seed}")
    assert log.step == "step"
    assert values(log)[1] == {"arm": "a", "seed": "0", "step": 2, "val/loss": 1.0}
    assert values(log)[3] == {"arm": "b", "seed": "1", "step": 2, "val/loss": 2.0}
    with pytest.raises(UserError, match="the folder a/seed0 doesn't fit {run}: give the form"):
        read_logs(str(tmp_path), "{run}")


def test_patterns_name_the_parts_of_a_path():
    assert matched("moe/lr=0.1/s3", "{arm}/lr={lr}/s{seed}") == {"arm": "moe", "lr": "0.1", "seed": "3"}
    with pytest.raises(UserError, match="must name each part once"):
        matched("a/b", "{arm}/{arm}")


def test_optuna_trials(tmp_path):
    import optuna

    url = f"sqlite:///{tmp_path / 'trials.db'}"
    study = optuna.create_study(storage=url, study_name="tpe")
    study.optimize(lambda trial: (trial.report(3.0, 0), trial.suggest_float("lr", 0.1, 0.1) + 1)[1], n_trials=1)
    log = read_logs(f"optuna:{url}")
    own = {"lr": 0.1, "study": "tpe", "trial": 0, "state": "complete"}
    assert values(log) == [{**own, "step": 0, "value": 3.0}, {**own, "step": 1, "value": 1.1}]
    assert (log.step, log.status) == ("step", "state")
    with pytest.raises(UserError, match="no such file"):
        read_logs(f"optuna:sqlite:///{tmp_path / 'none.db'}")
    assert not (tmp_path / "none.db").exists()


@pytest.mark.slow
def test_wandb_offline_runs(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    for seed in (0, 1):
        config = {"method": "a", "seed": seed, "model": {"top_k": 2}}
        with wandb.init(project="p", dir=str(tmp_path), config=config) as run:
            for step in (1, 2):
                run.log({"loss": 3.0 - step + seed, "layer": {"norm": step}}, step=step)
    wandb.teardown()
    log = read_logs(str(tmp_path))
    assert log.step == "_step"
    rows = sorted(values(log), key=lambda row: (row["seed"], row["_step"]))
    assert [(row["seed"], row["_step"], row["loss"]) for row in rows] == [
        (0, 1, 2.0),
        (0, 2, 1.0),
        (1, 1, 3.0),
        (1, 2, 2.0),
    ]
    assert rows[0]["method"] == "a" and rows[0]["model.top_k"] == 2


def test_a_wandb_project(monkeypatch):
    """W&B's own client is stood in for: no test reaches its servers."""
    wandb = pytest.importorskip("wandb")
    history = [{"_step": 1, "loss": 2.0}]
    run = SimpleNamespace(
        config={"method": "a", "seed": 0},
        name="calm-sea",
        group="g",
        state="finished",
        id="1",
        scan_history=lambda: history,
    )
    monkeypatch.setattr(wandb, "Api", lambda: SimpleNamespace(runs=lambda path: {"me/p": [run]}[path]))
    log = read_logs("wandb:me/p")
    assert values(log)[0] == {
        "method": "a", "seed": 0, "name": "calm-sea", "group": "g", "state": "finished", "id": "1", "_step": 1, "loss": 2.0,
    }  # fmt: skip
    assert (log.step, log.status) == ("_step", "state")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "x,x\n1,2\n", "two columns are called 'x'"),
        ("a.csv", "x,y\n1\n", "line 2: 1 values under 2 columns"),
        ("a.csv", "x,y\n", "has no rows"),
        ("a.csv", b"\xff\xfe\n", "can't read"),
        ("a.jsonl", "{\n", "line 1 is no JSON"),
        ("a.jsonl", "[1]\n", "line 1 must be a JSON object"),
        ("a.jsonl", '{"x": 1, "x": 2}\n', "line 1 is no JSON: the key 'x' is there twice"),
        ("a.jsonl", '{"x": {"y": 1}, "x.y": 2}\n', "line 1: 'x.y' is there twice, nested and with dots"),
        ("a.parquet", "no parquet", "can't read"),
        ("a.txt", "x\n", "is of no format that is known"),
    ],
)
def test_what_cannot_be_read_is_refused_in_a_line(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=message):
        read_logs(str(tmp_path / name))


def test_a_missing_source(tmp_path):
    with pytest.raises(UserError, match=r"none.csv|no such file"):
        read_logs(str(tmp_path / "none.csv"))
    with pytest.raises(UserError, match="there is no such file or folder; logs are a .csv"):
        read_logs(str(tmp_path / "none"))


def test_rows_are_json_ready(tmp_path):
    (tmp_path / "runs.csv").write_text("a\n1\n")
    assert json.dumps(values(read_logs(str(tmp_path / "runs.csv"))))
