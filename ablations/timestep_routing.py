"""Does a router that sees the timestep beat one that does not? (LLaDA-MoE, arXiv 2509.24389, open question 2)

Found at the smallest scale (346,784 parameters, 409,600 tokens, 8 seeds; NELBO in nats/token, arm minus control within
seeds, 95 % t interval, Holm over 9 arms; 2026-11-25, commit 9658a97):

- `quick`, Python's library sources: nothing is detected. film -0.009 ... +0.021 around +0.006, additive -0.018 ... +0.007
  around -0.006; told minus shuffled: additive +0.019 [-0.000, +0.038] p = 0.11, film +0.005 [-0.017, +0.027] p = 0.63.
- `synthetic`, a tree of known entropy (the control ends 1.20 nats above the floor): film is better by 0.024 [0.010, 0.038],
  p = 0.044, and needs 0.75 [0.65, 0.87] of the control's tokens for the same value; but so does film told another
  sequence's timestep (-0.031 [-0.058, -0.003]), and told minus shuffled is +0.007 [-0.021, +0.036]: what helps there is not
  the timestep. For additive the same contrast is -0.034 [-0.063, -0.005], p = 0.052 after Holm over two: open.

A random router is no worse than a learned one at this scale (-0.001 [-0.022, +0.020] on text): experts hardly specialise in
so few tokens, so this says little about models in which they do. Every arm's routers collapse for a while at first.
"""

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
