import pytest

from core.settings import build
from sweeps.launch.pool import share_of_cores
from sweeps.packing import Packing, best_workers, measure_packings

CONFIG = build(
    {"data.corpus": "markov", "data.sequence_length": 32, "data.validation_sequences": 8, "model.num_layers": 1}
)


def test_the_fastest_packing_is_chosen() -> None:
    slow, fast = Packing(1, 2, 10.0), Packing(2, 1, 14.0)
    assert (
        best_workers(CONFIG, [0, 1], lambda config, cores: sorted([slow, fast], key=lambda p: -p.steps_per_second))
        == fast
    )


@pytest.mark.slow
def test_packings_are_measured_in_processes_side_by_side() -> None:
    cores = share_of_cores(0, 1)[:2]
    packings = measure_packings(CONFIG, cores)
    assert sorted((p.workers, p.threads) for p in packings) == ([(1, 2), (2, 1)] if len(cores) == 2 else [(1, 1)])
    assert packings == sorted(packings, key=lambda p: -p.steps_per_second)
    assert all(p.steps_per_second > 0 for p in packings)
