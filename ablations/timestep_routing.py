"""Does a router that sees the timestep beat one that does not? (LLaDA-MoE, arXiv 2509.24389, open question 2)"""

from sweeps.spec import Ablation, Factor, Size

KIND, SEES = "model.router.kind", "model.router.sees"
TOLD = ("additive", "film", "bin_bias", "timestep_only", "unmodulated")
OTHERS = ("adaptive_k", "expert_choice", "bias_balanced", "soft", "hash", "random")
FEW = (
    *({KIND: kind, SEES: sees} for kind in ("additive", "film") for sees in ("timestep", "shuffled")),
    *({KIND: kind} for kind in ("bin_bias", "timestep_only", "adaptive_k", "expert_choice", "random")),
)
FEW_CONTRASTS = tuple(({KIND: kind}, {KIND: kind, SEES: "shuffled"}) for kind in ("additive", "film"))

ablation = Ablation(
    question="At equal active FLOPs, does a router that sees the timestep lower the NELBO, and is it the timestep that does?",
    factors=(
        Factor(KIND, ("topk", *TOLD, *OTHERS), label="router"),
        Factor(SEES, ("timestep", "mask_ratio", "shuffled"), label="sees"),
    ),
    control={KIND: "topk", SEES: "timestep"},
    # Told another sequence's timestep, a router has the same parameters and nothing to learn from them.
    arms=(
        *({KIND: kind, SEES: sees} for kind in TOLD for sees in ("timestep", "shuffled")),
        *({KIND: kind, SEES: "mask_ratio"} for kind in ("additive", "film")),
        *({KIND: kind} for kind in OTHERS),
    ),
    contrasts=tuple(({KIND: kind}, {KIND: kind, SEES: "shuffled"}) for kind in TOLD),
    base="proxy",
    match="active_flops",
    metric="val/nelbo",
    secondary=("load/max_vio",),
    margin=0.01,  # nats per token
    seeds=range(8),
    sizes={
        "quick": Size(arms=FEW, contrasts=FEW_CONTRASTS, seeds=range(8), base="tiny"),
        # A source whose exact posterior is known: what a perfect denoiser would reach is the floor of every arm.
        "synthetic": Size(
            arms=FEW, contrasts=FEW_CONTRASTS, seeds=range(8), base="tiny", settings={"data.corpus": "tree"}
        ),
    },
)
