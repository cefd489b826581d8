"""Do the load-balancing and z losses matter more, or less, to a router that sees the timestep? (arXiv 2509.24389, Eq. 4)

A router that may send masked and visible tokens, or early and late timesteps, to different experts has another load to
balance: so the question is the interaction, the told router's gain under one weight minus its gain under another.
"""

from sweeps.spec import Ablation, Factor, Size

KIND = "model.router.kind"
LOAD_BALANCING = "objective.load_balancing_weight"
Z_LOSS = "objective.z_loss_weight"

ablation = Ablation(
    question="Does what a router gains from seeing the timestep depend on the load-balancing and router z losses?",
    factors=(
        Factor(KIND, ("topk", "additive", "film"), label="router"),
        Factor(LOAD_BALANCING, (0.0, 0.01, 0.1), label="load balancing"),
        Factor(Z_LOSS, (0.0, 0.001), label="z-loss"),
    ),
    control={KIND: "topk", LOAD_BALANCING: 0.01, Z_LOSS: 0.001},
    base="proxy",
    match="active_flops",
    metric="val/nelbo",
    secondary=("load/max_vio",),
    margin=0.01,  # nats per token
    seeds=range(8),
    sizes={
        "quick": Size(
            factors=(
                Factor(KIND, ("topk", "film"), label="router"),
                Factor(LOAD_BALANCING, (0.0, 0.01), label="load balancing"),
                Factor(Z_LOSS, (0.0, 0.001), label="z-loss"),
            ),
            seeds=range(8),
            base="tiny",
        ),
    },
)
