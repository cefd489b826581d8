"""Do the load-balancing and z losses matter, and at which weights? (LLaDA-MoE, arXiv 2509.24389, Eq. 4)"""

from sweeps.spec import Ablation, Factor, Size

LOAD_BALANCING = "objective.load_balancing_weight"
Z_LOSS = "objective.z_loss_weight"

ablation = Ablation(
    question="Do the load-balancing and router z losses change what a masked-diffusion MoE learns, and at which weights?",
    factors=(
        Factor(LOAD_BALANCING, (0.0, 0.01, 0.1), label="load balancing"),
        Factor(Z_LOSS, (0.0, 0.001, 0.01), label="z-loss"),
    ),
    control={LOAD_BALANCING: 0.01, Z_LOSS: 0.001},  # the paper's weights
    base="proxy",
    metric="val/nelbo",
    secondary=("load/max_vio", "val/z_loss"),
    margin=0.01,  # nats per token
    seeds=range(8),
    sizes={
        "quick": Size(
            factors=(
                Factor(LOAD_BALANCING, (0.0, 0.01), label="load balancing"),
                Factor(Z_LOSS, (0.0, 0.001), label="z-loss"),
            ),
            seeds=range(6),
            base="tiny",
        ),
    },
)
