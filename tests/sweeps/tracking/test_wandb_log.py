import pytest

from core.errors import UserError
from sweeps.tracking.wandb_log import copy_after, read
from tests.sweeps.tracking.test_wandb_run import read_back

messages = pytest.importorskip("wandb.proto.wandb_internal_pb2")


def history(step: int, length: int) -> bytes:
    row = messages.HistoryRecord(step=messages.HistoryStep(num=step))
    row.item.add(key="_step", value_json=str(step))
    row.item.add(key="text", value_json='"' + "x" * length + '"')
    return messages.Record(history=row).SerializeToString()


@pytest.fixture
def log(tmp_path):
    """A file of W&B's own with rows longer than a block, and one that leaves less than a header's room."""
    from sweeps.tracking.wandb_log import _pieces

    run = messages.Record(run=messages.RunRecord(run_id="abc", project="p")).SerializeToString()
    rows = [history(step, length) for step, length in enumerate((10, 40_000, 100_000, 25_000, 7_000, 10))]
    path = tmp_path / "run-abc.wandb"
    path.write_bytes(b":W&B\xe1\xbe\x00" + b"".join(_pieces([run, *rows])))
    return path


def test_rows_of_any_length_are_read_and_copied(log, tmp_path) -> None:
    found = read(log)
    assert (found.run_id, found.project, found.steps, found.torn) == ("abc", "p", (0, 1, 2, 3, 4, 5), False)
    assert [len(row["text"]) for row in read_back(log).rows] == [10, 40_000, 100_000, 25_000, 7_000, 10]
    copy_after(log, tmp_path / "cut.wandb", 2)
    assert [(row["_step"], len(row["text"])) for row in read_back(tmp_path / "cut.wandb").rows] == [
        (3, 25_000),
        (4, 7_000),
        (5, 10),
    ]
    assert read_back(tmp_path / "cut.wandb").run.run_id == "abc"


@pytest.mark.parametrize(("cut", "steps"), [(1, 5), (30, 5), (8_000, 3), (60_000, 2)])
def test_a_torn_end_is_seen_and_left_out(log, tmp_path, cut, steps) -> None:
    log.write_bytes(log.read_bytes()[:-cut])
    assert read(log).torn and len(read(log).steps) == steps
    copy_after(log, tmp_path / "whole.wandb", -1)
    assert not read(tmp_path / "whole.wandb").torn and len(read(tmp_path / "whole.wandb").steps) == steps


def test_other_files_are_refused(tmp_path) -> None:
    (tmp_path / "run-x.wandb").write_bytes(b"text")
    with pytest.raises(UserError, match="no transaction log"):
        read(tmp_path / "run-x.wandb")
    (tmp_path / "run-x.wandb").write_bytes(b":W&B\xe1\xbe\x00")
    with pytest.raises(UserError, match="which run"):
        read(tmp_path / "run-x.wandb")
