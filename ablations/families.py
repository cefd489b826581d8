"""Which way of learning predicts best at equal training FLOPs: masked diffusion, dense or sparse, in blocks, from an
autoregressive start, or autoregression itself?

Every arm is a recipe of core.config.presets on the control's model: the same depth, width, heads and active feed-forward
width, and as many steps as cost the control's training FLOPs. Dream's and LLaDA 1.5's first stages are trained in each
run and count. A NELBO is a bound and an autoregressive model's likelihood is exact, so that a lower exact number proves
nothing; and LLaDA 1.5, which learns from pairs of responses, isn't compared. The report says so beside each arm.

Found with `quick` (5 seeds, 346,784 parameters, 300 steps of 1,024 bytes; 2026-11-30, commit d75fdd0): Dream's recipe, an
autoregressive start included in its budget, is better by 0.13 nats [0.11, 0.15]; LLaDA, LLaDA2.0 and EC-DLM, in both its
options, don't differ detectably. Nothing is said about other scales.
"""

from sweeps.spec import Ablation, Size, preset, recipes

ablation = Ablation(
    question="At equal training FLOPs, which way of learning gives the lowest NELBO: the published systems as recipes?",
    recipes=recipes(preset("proxy")),
    base="proxy",
    metric="val/nelbo",
    margin=0.01,  # nats per token
    seeds=range(8),
    sizes={
        "quick": Size(
            recipes=recipes(preset("tiny")),
            base="tiny",
            seeds=range(5),
            settings={"trainer.steps": 300, "trainer.validate_every": 100},
        ),
    },
)
