import pytest

from core.config.loading import build
from core.errors import UserError
from sweeps.launch.machine import share_of_cores
from sweeps.runs.packing import measure_packings

CONFIG = build(
    {"data.corpus": "markov", "data.sequence_length": 32, "data.validation_sequences": 8, "model.num_layers": 1}
)


class Machine:
    """Steps take what `seconds` says for so many processes side by side; what it doesn't say doesn't fit."""

    def __init__(self, seconds):
        self.seconds, self.asked = seconds, []

    def __call__(self, config, shares):
        self.asked.append(shares)
        each = self.seconds.get(len(shares))
        return None if each is None else [each] * len(shares)


def test_the_fastest_packing_of_the_cores_is_chosen() -> None:
    machine = Machine({1: 0.1, 2: 0.15, 4: 0.4})
    best = measure_packings(CONFIG, [0, 1, 2, 3], timing=machine)[0]
    assert (best.workers, best.threads, best.steps_per_second) == (2, 2, pytest.approx(2 / 0.15))
    assert [[share.cores for share in shares] for shares in machine.asked] == [
        [(0, 1, 2, 3)],
        [(0, 2), (1, 3)],
        [(0,), (1,), (2,), (3,)],
    ]


def test_workers_are_added_to_a_gpu_until_they_gain_nothing() -> None:
    machine = Machine({1: 0.1, 2: 0.11, 4: 0.15, 8: 0.3})
    best = measure_packings(CONFIG, range(16), ["3", "5"], machine)[0]
    assert (best.workers, best.threads) == (8, 2)  # 4 on each of two
    assert best.steps_per_second == pytest.approx(2 * 4 / 0.15)
    assert [len(shares) for shares in machine.asked] == [1, 2, 4, 8]
    assert {share.gpu for shares in machine.asked for share in shares} == {"3"}
    cores = [core for share in machine.asked[2] for core in share.cores]
    assert len(cores) == len(set(cores)) == 8  # the other GPU's workers have the rest


def test_what_does_not_fit_the_gpus_memory_ends_the_search() -> None:
    machine = Machine({1: 0.1, 2: 0.12})
    assert measure_packings(CONFIG, [0, 1], ["0"], machine)[0].workers == 2
    assert [len(shares) for shares in machine.asked] == [1, 2, 4]
    assert machine.asked[2][3].cores == (1,)  # more workers than cores share them
    for gpus in (["0"], []):
        with pytest.raises(UserError, match="name a number of workers"):
            measure_packings(CONFIG, [0, 1], gpus, Machine({}))


@pytest.mark.slow
def test_packings_are_measured_in_processes_side_by_side() -> None:
    cores = share_of_cores(0, 1)[:2]
    packings = measure_packings(CONFIG, cores)
    assert sorted((p.workers, p.threads) for p in packings) == ([(1, 2), (2, 1)] if len(cores) == 2 else [(1, 1)])
    assert packings == sorted(packings, key=lambda p: -p.steps_per_second)
    assert all(p.steps_per_second > 0 for p in packings)
