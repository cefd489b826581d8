import pytest
import torch

from core.training.health import WINDOW, Alarm, of_curve, of_load, summary


def kinds(alarms: list[Alarm]) -> list[str]:
    return [alarm.kind for alarm in alarms]


@pytest.mark.parametrize(
    ("name", "rows", "expected"),
    [
        ("train/nelbo", [2.0] * WINDOW + [2.9], []),
        ("train/nelbo", [2.0] * WINDOW + [3.1], ["nelbo spike"]),
        ("train/nelbo", [2.0] * (WINDOW - 1) + [9.0], []),  # too little is known to call it one
        ("train/nelbo", [6.0, 5.0, 4.0, 3.5, 3.2, 3.0, 2.9, 2.8, 2.7, 2.6, 2.5], []),
        ("train/z_loss", [1.0] * WINDOW + [5.1], ["z_loss spike"]),
        ("train/z_loss", [1.0 + 0.11 * i for i in range(WINDOW + 1)], ["z_loss rise"]),
        ("train/z_loss", [1.0 + 0.09 * i for i in range(WINDOW + 1)], []),  # rises, but less than twofold
        ("train/z_loss", [1.0, 3.0, 2.0] + [3.0 + i for i in range(WINDOW - 2)], []),  # fell once
    ],
)
def test_alarms_of_a_curve(name: str, rows: list[float], expected: list[str]) -> None:
    assert kinds(of_curve(50, {name: rows})) == expected


@pytest.mark.parametrize(
    ("counts", "tokens", "expected"),
    [
        ([25, 25, 25, 25, 25, 25, 25, 25], 100, []),  # balance, k = 2 of 8
        ([60, 20, 20, 20, 20, 20, 20, 20], 100, ["collapse"]),  # 60 % of the tokens reach one expert
        ([40, 30, 22, 22, 22, 22, 22, 20], 100, []),
        ([50, 50, 50, 50], 100, []),  # k = 2 of 4: half the tokens reach each at balance
        ([100, 70, 5, 5, 5, 5, 5, 5], 100, ["collapse", "collapse"]),  # and two have 85 % of the assignments
        ([30, 30, 30, 30, 30, 30, 20, 0], 100, ["dead experts"]),
        ([100] * 8, 100, []),  # soft: every token reaches all
    ],
)
def test_alarms_of_a_load(counts: list[int], tokens: int, expected: list[str]) -> None:
    assert kinds(of_load(9, torch.tensor([counts]), tokens, 1.0)) == expected


def test_a_load_balancing_loss_below_balance_is_an_alarm() -> None:
    assert kinds(of_load(9, torch.tensor([[1, 1]]), 2, 0.97)) == ["load balancing"]
    assert not of_load(9, torch.tensor([[1, 1]]), 2, 0.99)


def test_an_alarm_names_its_layer_and_the_first_of_a_kind_is_kept() -> None:
    alarms = of_load(9, torch.tensor([[4, 4], [8, 0]]), 8, 1.0)
    assert alarms[0].detail == "layer 1: one expert has 100% of the tokens" or alarms[0].kind == "dead experts"
    assert all("layer 1" in alarm.detail for alarm in alarms)
    later = [Alarm(1, "a", "x"), Alarm(2, "b", "y"), Alarm(3, "a", "z")]
    assert summary(later) == later[:2]
