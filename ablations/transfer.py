"""Does a learning rate that was tuned on a small model have to be rescaled for the next one up, and by which rule?

`quick` tunes it on a very small model; `quick_next` trains one of several times the compute with that rate as it is, and as
the rules of `ablate export --rule` rescale it. The full size asks the same between proxy_3m and proxy_10m.

Found (2026-11-26, commit 3ed1105): the small model's loss is flat from 0.002 to 0.032 (5 seeds), and on the larger one no
rule's rate differs detectably from the untransferred 0.016 (6 seeds, in nats: compute -0.004 [-0.045, +0.036], width +0.015
[-0.052, +0.081], batch too +0.031 [-0.040, +0.103]). So small a model can't tell the rules apart.
"""

from typing import Any

from core.config.loading import build
from core.config.run import RunConfig, to_dict
from sweeps.export.transfer import BATCH, RATE, RULES, Scale
from sweeps.spec import Ablation, Factor, Size, preset

STEPS = "trainer.steps"


def rescaled(best: float, small: RunConfig, large: RunConfig) -> dict[str, tuple[float, int, int]]:
    """The rate, batch and steps that each rule gives the larger model, whose tokens stay as they are."""
    scales, batch, steps = (Scale.of(small), Scale.of(large)), large.trainer.batch_size, large.trainer.steps
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


def shape(hidden: int, layers: int) -> dict[str, Any]:
    """A model of the LLaDA-MoE shape whose heads are 32 wide and whose chosen experts are one hidden size wide together."""
    return {
        "model.hidden_size": hidden,
        "model.num_heads": hidden // 32,
        "model.num_layers": layers,
        "model.expert_width": hidden // 2,
    }


SMALL, LARGER = shape(32, 2), shape(64, 3)
SMALL_STEPS, LARGER_STEPS = 300, 600
RATES = (2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2)
TUNED = {
    "small": 1.6e-2,
    "proxy_3m": 3e-3,
}  # the best of RATES on the small one; on proxy_3m the preset's own, not tuned here


TINY = to_dict(preset("tiny"))
NEXT = rescaled(
    TUNED["small"],
    build(TINY, SMALL, {STEPS: SMALL_STEPS}),
    build(TINY, LARGER, {STEPS: LARGER_STEPS}),
)

ablation = Ablation(
    question="At the next scale up, does the learning rate that a rule rescales beat the one that was tuned below?",
    **design(rescaled(TUNED["proxy_3m"], preset("proxy_3m"), preset("proxy_10m"))),
    base="proxy_10m",
    metric="val/nelbo",
    margin=0.01,  # nats per token
    seeds=range(8),
    sizes={
        "quick": Size(
            factors=(Factor(RATE, RATES),),
            control={RATE: TUNED["small"]},
            arms="all",
            seeds=range(5),
            base="tiny",
            settings=SMALL | {STEPS: SMALL_STEPS},
        ),
        "quick_next": Size(**design(NEXT), seeds=range(8), base="tiny", settings=LARGER),
    },
)
