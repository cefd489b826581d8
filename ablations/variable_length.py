"""What does training a share of the steps on shorter sequences buy? (LLaDA-MoE, arXiv 2509.24389, Sec. 3: 1 % at U[8, L])

`ablate probe lengths variable_length` answers at other lengths than the training's, longer ones too.

Found at the smallest scale (`quick`: 346,784 parameters, 409,600 tokens of text in sequences of 64, 6 seeds; 2026-11-26,
commit 5c598e4): no detectable difference at lengths from 8 to 128 (1 %: -0.018 [-0.053, +0.016] nats/token at 64), and none
that changes with the length. 1 % of its 400 steps is four batches, so it says little.
"""

from sweeps.spec import Ablation, Factor, Size

SHARE = "data.variable_length_share"
SHARES = (0.0, 0.005, 0.01, 0.05)

ablation = Ablation(
    question="What does training 0.5, 1 or 5 % of the steps on shorter sequences buy, at which lengths?",
    factors=(Factor(SHARE, SHARES, label="short steps"),),
    control={SHARE: 0.0},
    base="proxy",
    metric="val/nelbo",
    margin=0.01,  # nats per token
    seeds=range(8),
    sizes={
        "quick": Size(factors=(Factor(SHARE, (0.0, 0.01, 0.05), label="short steps"),), seeds=range(6), base="tiny")
    },
)
