import pytest

from core.errors import UserError
from sweeps.spec import Ablation, Factor, Size, study_name

FACTOR = Factor("model.top_k", (1, 2))


@pytest.mark.parametrize(
    ("field", "make"),
    [
        ("match", lambda: Ablation("?", (FACTOR,), {"model.top_k": 1}, match="flops")),
        ("arms", lambda: Ablation("?", (FACTOR,), {"model.top_k": 1}, arms="one-at-a-time")),
        ("arms", lambda: Ablation("?", (FACTOR,), {"model.top_k": 1}, arms=())),
        ("arms", lambda: Size(arms=("model.top_k",))),
        ("seeds", lambda: Ablation("?", (FACTOR,), {"model.top_k": 1}, seeds=5)),
        ("seeds", lambda: Size(seeds=5)),
        ("factors", lambda: Factor("model.top_k", 2)),
    ],
)
def test_a_wrong_word_is_refused_with_its_field(field, make) -> None:
    with pytest.raises(UserError, match=f"^{field}: "):
        make()


def test_a_size_replaces_what_it_names_and_keeps_the_rest() -> None:
    full = Ablation(
        "?",
        (FACTOR,),
        {"model.top_k": 1},
        settings={"a": 1, "b": 2},
        sizes={"quick": Size(seeds=(7,), settings={"b": 3})},
    )
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
