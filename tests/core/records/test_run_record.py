import json
import math
import os

import pytest

from core.records import field_checks, run_record
from core.records.run_record import RunRecord, UnreadableRecordError


def record(**fields) -> RunRecord:
    return RunRecord(
        **{"status": "complete", "run_hash": "r", "arm_hash": "a", "seed": 0, "config": {"seed": 0}} | fields
    )


def test_a_record_is_one_line_and_comes_back_equal(tmp_path) -> None:
    written = record(metrics={"val/nelbo": 2.5}, curve={"step": [1.0, 2.0]}, study={"arm": "<b>ü"})
    path = run_record.write(written, tmp_path)
    assert path.read_text().count("\n") == 1
    assert run_record.read(path) == written


def test_what_json_cannot_say_becomes_null() -> None:
    text = record(curve={"loss": [1.0, math.nan, math.inf]}).to_json()
    assert json.loads(text)["curve"]["loss"] == [1.0, None, None]


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "",
        lambda text: "[]",
        lambda text: text.replace('"schema":1', '"schema":99'),
        lambda text: text.replace('"seed"', '"sede"'),
    ],
)
def test_what_cannot_be_trusted_is_refused_with_its_path(tmp_path, damage) -> None:
    path = tmp_path / "record.json"
    path.write_text(damage(record().to_json()))
    with pytest.raises(UnreadableRecordError, match="record.json"):
        run_record.read(path)


def test_a_crash_while_writing_leaves_the_old_content(tmp_path, monkeypatch) -> None:
    path = run_record.write(record(seed=1, status="paused"), tmp_path)
    before = path.read_bytes()

    def crash(descriptor: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", crash)
    with pytest.raises(OSError, match="disk full"):
        run_record.write(record(seed=2), tmp_path)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["record.json"]


def test_every_field_of_a_record_is_checked_as_it_is_read() -> None:
    assert set(field_checks._Record.__annotations__) == set(RunRecord.__dataclass_fields__)
    with pytest.raises(UnreadableRecordError, match=r"notes\[0\]: expected text, got whole number"):
        RunRecord.from_json(record(notes=[1]).to_json())


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("metrics", '{"val/x":1e999}', "metrics 'val/x': expected number <="),
        ("metrics", '{"val/x":true}', "metrics 'val/x': expected number or null, got bool"),
        ("curve", '{"loss":["' + "y" * 99 + '"]}', r"curve 'loss'\[0\]: expected number or null, got text"),
        ("study", '{"\\udcff":1}', "a name that is no text"),
        ("status", '"' + "y" * 999 + '"', "status: invalid enum value 'y{40}…'"),
    ],
    ids=["infinite", "bool", "text", "surrogate", "long"],
)
def test_a_wrong_field_is_a_short_line_that_names_it(field: str, value: str, message: str) -> None:
    content = json.loads(record().to_json()) | {field: "HERE"}
    with pytest.raises(UnreadableRecordError, match=message) as refused:
        RunRecord.from_json(json.dumps(content).replace('"HERE"', value))
    assert len(str(refused.value)) < 200


def test_digits_within_a_text_are_no_number() -> None:
    whole_one = record(reason="tokens [12345678901234567890123]")
    assert RunRecord.from_json(whole_one.to_json()) == whole_one
    with pytest.raises(UnreadableRecordError, match="a number of 23 digits"):
        RunRecord.from_json(whole_one.to_json().replace('"seed":0', '"seed":12345678901234567890123', 1))
