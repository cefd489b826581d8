"""Does a learning rate that was tuned on a small model have to be rescaled for the next one up, and by which rule?

`quick` tunes it on the smallest model; `quick_next` trains a model of six times the compute with that rate as it is, and
as the rules of `ablate export --rule` rescale it. The full size asks the same between proxy_3m and proxy_10m.
"""

from typing import Any

from core.config import to_dict
from core.presets import preset
from core.settings import build
from sweeps.spec import Ablation, Factor, Size
from sweeps.transfer import BATCH, RATE, RULES, Scale

STEPS = "trainer.steps"


def rescaled(best: float, small: str, large: str, larger: dict[str, Any]) -> dict[str, tuple[float, int, int]]:
    """The rate, batch and steps that each rule gives the larger model, whose tokens stay as they are."""
    before, after = preset(small), build(to_dict(preset(large)), larger)
    scales, batch, steps = (Scale.of(before), Scale.of(after)), after.trainer.batch_size, after.trainer.steps
    found = {"none": (best, batch, steps)}
    for name in ("compute", "width"):
        found[name] = (float(f"{best * RULES[name].learning_rate(*scales):.3g}"), batch, steps)
    wider = round(batch * RULES["compute"].batch(*scales))
    found["compute, batch too"] = (found["compute"][0], wider, round(steps * batch / wider))
    return found


def design(rules: dict[str, tuple[float, int, int]]) -> dict[str, Any]:
    """The arms of those rules, the untransferred rate as control."""
    keys = (RATE, BATCH, STEPS)
    control, *others = (dict(zip(keys, values, strict=True)) for values in rules.values())
    levels = [tuple(dict.fromkeys(values[place] for values in rules.values())) for place in range(3)]
    labels = ("learning rate", "batch", "steps")
    return {
        "factors": tuple(Factor(*each) for each in zip(keys, levels, labels, strict=True)),
        "control": control,
        "arms": tuple({key: value for key, value in arm.items() if control[key] != value} for arm in others),
    }


LARGER = {
    "model.hidden_size": 160,
    "model.num_heads": 5,
    "model.num_layers": 3,
    "model.expert_width": 80,
}
TUNED = {"tiny": 4e-3, "proxy_3m": 3e-3}  # the best of RATES on tiny; on proxy_3m the preset's own, not tuned here
RATES = (1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2)

ablation = Ablation(
    question="At the next scale up, does the learning rate that a rule rescales beat the one that was tuned below?",
    **design(rescaled(TUNED["proxy_3m"], "proxy_3m", "proxy_10m", {})),
    base="proxy_10m",
    metric="val/nelbo",
    margin=0.01,  # nats per token
    seeds=range(8),
    sizes={
        "quick": Size(
            factors=(Factor(RATE, RATES),), control={RATE: TUNED["tiny"]}, arms="all", seeds=range(5), base="tiny"
        ),
        "quick_next": Size(
            **design(rescaled(TUNED["tiny"], "tiny", "tiny", LARGER | {STEPS: 600})),
            seeds=range(5),
            base="tiny",
            settings=LARGER,
        ),
    },
)
