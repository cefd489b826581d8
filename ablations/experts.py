"""How many experts, and how many of them per token, at equal active FLOPs? (granularity: arXiv 2402.07871)"""

from sweeps.spec import Ablation, Factor, Size

EXPERTS = "model.num_experts"
TOP_K = "model.top_k"

ablation = Ablation(
    question="At equal active FLOPs per token, do more experts or finer ones lower the NELBO?",
    factors=(
        Factor(EXPERTS, (8, 16, 32), label="experts"),
        Factor(TOP_K, (1, 2, 4), label="top-k"),
    ),
    control={EXPERTS: 16, TOP_K: 2},
    base="proxy",
    match="active_flops",
    metric="val/nelbo",
    secondary=("train/tokens_per_second",),  # not MaxVio: E / k - 1 bounds it, and the arms differ in that
    margin=0.01,  # nats per token
    seeds=range(8),
    sizes={
        "quick": Size(
            factors=(Factor(EXPERTS, (4, 8, 16), label="experts"), Factor(TOP_K, (1, 2), label="top-k")),
            control={EXPERTS: 8, TOP_K: 2},
            seeds=range(5),
            base="tiny",
        ),
    },
)
