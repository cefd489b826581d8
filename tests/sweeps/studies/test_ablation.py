import numpy as np
import pytest

from core.errors import UserError
from sweeps.search.spec import Budget, Log, Search
from sweeps.studies.ablation import Ablation, Size
from sweeps.studies.decoders import Decoders
from sweeps.studies.factors import Factor
from sweeps.studies.ladder import Ladder
from sweeps.studies.study import study_name

RATE = "optimizer.learning_rate"
FACTOR = Factor("model.top_k", (1, 2))


def ablation(**fields) -> Ablation:
    return Ablation("?", (FACTOR,), {"model.top_k": 1}, **fields)


def search(**fields) -> Search:
    return Search("?", {RATE: Log(1e-4, 1e-2)}, **fields)


def test_a_size_replaces_what_it_names_and_keeps_the_rest() -> None:
    full = ablation(settings={"a": 1, "b": 2}, sizes={"quick": Size(seeds=(7,), settings={"b": 3})})
    quick = full.sized("quick")
    assert (quick.seeds, quick.settings, quick.factors) == ((7,), {"a": 1, "b": 3}, full.factors)
    assert full.sized("full") is full
    assert (study_name("x", "full"), study_name("x", "quick")) == ("x", "x.quick")
    with pytest.raises(KeyError):
        full.sized("huge")


def test_a_size_adds_to_a_section_of_the_settings() -> None:
    sizes = {"small": Size(settings={"trainer": {"steps": 7}})}
    ablation = Ablation("?", settings={"trainer": {"steps": 9, "batch_size": 3}, "seed": 1}, sizes=sizes)
    assert ablation.sized("small").settings == {"trainer.steps": 7, "trainer.batch_size": 3, "seed": 1}


@pytest.mark.parametrize(
    ("field", "make"),
    [
        ("match: ", lambda: ablation(match="flops")),
        ("arms: ", lambda: ablation(arms="one-at-a-time")),
        ("arms: ", lambda: ablation(arms=())),
        ("arms: ", lambda: Size(arms=("model.top_k",))),
        ("seeds: ", lambda: ablation(seeds=5)),
        ("seeds: ", lambda: Size(seeds=5)),
        ("factors: ", lambda: Factor("model.top_k", 2)),
        ("factors: a tuple of one needs its comma", lambda: Ablation("?", FACTOR, {"model.top_k": 1})),
        ("margin: .*not the text '0.01'", lambda: ablation(margin="0.01")),
        ("secondary: a tuple of one", lambda: ablation(secondary="load/max_vio")),
        ("sizes: ", lambda: ablation(sizes={"quick": {"seeds": (0,)}})),
        ("factors: 'model.top_k': levels: ", lambda: Factor("model.top_k", (np.int64(1), np.int64(2)))),
        ("decoders: margin: ", lambda: Decoders((), {}, margin="1")),
        ("ladder: flops: a tuple of one", lambda: Ladder({"a": ({},)}, flops=1e15)),
        ("budget: trials: ", lambda: Budget(trials="64")),
        ("space: 'optimizer.learning_rate': low: .*the text '1e-4'", lambda: Search("?", {RATE: Log("1e-4", 1)})),
        ("space: 'optimizer.learning_rate' must be one of", lambda: Search("?", {RATE: (1e-4, 1)})),
        ("confirm: must be a whole number", lambda: search(confirm="8")),
        ("seeds: a list", lambda: search(seeds=2)),
    ],
)
def test_a_value_of_a_wrong_type_is_refused_with_its_field(field, make) -> None:
    with pytest.raises(UserError, match=f"^{field}"):
        make()


@pytest.mark.parametrize(
    ("factor", "said"),
    [
        (Factor("model.top_k", ("1", "2")), "'model.top_k' takes numbers, not the text '1'"),
        (Factor("optimizer.learning_rate", (0.1, "0.2")), "takes numbers, not the text '0.2'"),
        (Factor("model.topk", (1, 2)), "unknown config key 'model.topk': did you mean model.top_k"),
    ],
)
def test_levels_and_keys_that_cannot_be_are_refused(factor, said) -> None:
    with pytest.raises(UserError, match=f"^factors: .*{said}"):
        Ablation("?", (factor,), {"model.top_k": 1}).check({})
    with pytest.raises(UserError, match=f"^factors: .*{said}"):
        Ablation("?", (factor,), {factor.key: factor.levels[0]}).check({})


@pytest.mark.parametrize("kind", [ablation, search])
@pytest.mark.parametrize("seeds", [None, "01", range(10**12), range(2**70), [0] * 10_001])
def test_seeds_are_a_list_of_what_a_plan_can_hold(kind, seeds) -> None:
    with pytest.raises(UserError, match="^seeds: "):
        kind(seeds=seeds)


def test_a_seed_that_no_run_could_be_given_is_refused_before_training() -> None:
    with pytest.raises(UserError, match=rf"^seeds: {2**63} is not a whole number from 0 on, below"):
        ablation(seeds=(1, 2**63)).check({})
    ablation(seeds=(1, 2**63 - 1)).check({})


@pytest.mark.parametrize("kind, edition", [(ablation, Size()), (search, {})])
def test_a_size_has_a_name_of_its_own_that_can_name_a_folder(kind, edition) -> None:
    for name in ("full", "confirm", "quick.confirm"):
        with pytest.raises(UserError, match=f"^sizes: '{name}' is the name of"):
            kind(sizes={name: edition})
    for name in ("", "a b", "../x", ".x"):
        with pytest.raises(UserError, match="^sizes: .* names a folder"):
            kind(sizes={name: edition})
    assert set(kind(sizes={"quick_next": edition, "v1.5-b": edition}).sizes) == {"quick_next", "v1.5-b"}
