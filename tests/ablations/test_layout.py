"""`ablate layout`: in 80 columns, as JSON, and what it refuses."""

import json
from pathlib import Path

from core.config.loading import build
from core.records import run_record
from core.runtime.units import parse
from core.training.run import train
from tests.ablations.shell import ablate, mistake
from tests.core.training.test_run import QUICK


def test_a_layout_with_its_memory_time_and_cost() -> None:
    done = ablate(
        "layout", "llada_moe_7b_a1b", "--cluster", "64xH100-80G", "--tokens", "10T", "trainer.batch_size=1024"
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    for part in (
        "7.36G parameters, 1.4G active",
        "deepspeed.stage=",
        "logits, softmax and gradient",
        "MFU",
        "GPU-hours",
    ):
        assert any(part in line for line in lines), part
    assert "that can't fit" in done.stdout and "more that fit" in done.stdout


def test_the_same_as_json_and_its_settings_make_the_same_plan() -> None:
    asked = ("layout", "llada_moe_7b_a1b", "--cluster", "8xH200-141G", "--tokens", "500B", "--json")
    found = json.loads(ablate(*asked).stdout)
    assert found["tokens"] == 5e11 and 0 < found["mfu"] < 1
    assert found["memory"]["total"] == sum(found["memory"]["parts"].values()) <= found["memory"]["limit"]
    chosen = [
        f"{key}={json.dumps(value) if isinstance(value, bool) else value}" for key, value in found["settings"].items()
    ]
    again = json.loads(ablate(*asked, "--as-is", *chosen).stdout)
    assert again["layout"] == found["layout"] and again["others"] == again["refused"] == []
    assert again["days"] == found["days"] and again["gpu_hours"] == found["gpu_hours"]


def test_a_short_run_corrects_the_time(tmp_path: Path) -> None:
    record = train(build(QUICK), tmp_path)
    asked = ("layout", "proxy_1m", "--cluster", "2xcpu", "--json")
    plain = json.loads(ablate(*asked).stdout)
    found = json.loads(ablate(*asked, "--calibrate", str(tmp_path)).stdout)
    assert found["calibration"]["device"] == "1xcpu/1" and plain["calibration"] is None
    assert found["calibration"]["measured_s"] < record.wall_time_s
    assert (found["step_s"]["total"] > plain["step_s"]["total"]) == (found["calibration"]["scale"] > 1)
    mistake(ablate(*asked, "--calibrate", str(tmp_path / "none")), "--calibrate", "no record can be read")
    assert run_record.read(tmp_path / "record.json") == record


def test_mistakes_are_one_line() -> None:
    asked = ("layout", "llada_moe_7b_a1b", "--cluster")
    mistake(ablate(*asked, "8xV100"), "unknown device 'V100'", "H100-80G")
    mistake(ablate(*asked, "1xA100-40G", "--no-offload"), "no layout of", "would help")
    mistake(ablate(*asked, "8xH100-80G", "--tokens", "many"), "'many' is not a number of tokens")
    mistake(ablate(*asked, "8xH100-80G", "--headroom", "2"), "headroom must lie in [0, 1)")
    mistake(ablate("layout", "llada_moe_7b_a1b"), "--cluster")


def test_numbers_of_tokens_as_people_write_them() -> None:
    assert [parse(text) for text in ("10T", "500B", "1.5e12", "20k", "7")] == [1e13, 5e11, 1.5e12, 2e4, 7.0]
