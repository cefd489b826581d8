"""Do the load-balancing and z losses matter more, or less, to a router that sees the timestep? (arXiv 2509.24389, Eq. 4)

A router that may send masked and visible tokens, or early and late timesteps, to different experts has another load to
balance: so the question is the interaction, the told router's gain under one weight minus its gain under another.

Found at the smallest scale (`quick`: 346,784 parameters, 409,600 tokens of Python's library sources, 8 seeds; NELBO
in nats/token, 95 % t intervals, Holm over three; 2026-11-25, commit 9658a97): none. router x load balancing -0.005
[-0.019, +0.008], router x z-loss -0.013 [-0.031, +0.005], load balancing x z-loss +0.022 [-0.006, +0.049];
interactions below about 0.03 can't be told from none. MaxVio rises by 1.6 to 2.2 without the load-balancing loss,
whatever the router. Nothing is said about scales at which experts specialise.
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
