"""How does the loss fall with active parameters and tokens, dense and sparse, and what becomes of the routers? (LLaDA-MoE,
arXiv 2509.24389, open question 1)

Every model size is trained at several compute budgets (IsoFLOP, Hoffmann et al., arXiv 2203.15556, Sec. 3.2) and at a fixed
number of tokens for each active parameter; `ablate report` fits L = E + A / N^alpha + B / D^beta with what sparsity and
granularity change about it. Chosen experts are together as wide as the dense twin's layer, so that a family differs in
what it leaves idle, and in the router.

`quick` learns a Markov chain whose entropy is known: what E ought to be. Found there (29 runs, 4k to 87k active
parameters, 185k to 1.48M tokens; 2026-11-26, commit 6eb1442): no law is determined. Of the forms, one law with sparsity was
the least off on the largest models (3.4 %), in which dense and sparse share E; it is 1.73 [0.00, 1.87], and the chain's
entropy is 1.896. Nothing is said about other scales.

The full size needs text of its own (data.corpus=tokens:FOLDER): the default corpus would be repeated thousands of times.
"""

from typing import Any

from sweeps.spec import Ablation, Ladder, Size


def model(
    hidden: int, layers: int, head_dim: int, rate: float, *, experts: int = 0, top_k: int = 0, granularity: int = 1
) -> dict[str, Any]:
    """A LLaDA-MoE shape whose layers are 4 hidden sizes wide for each token: as one layer, or as top-k experts."""
    width = 4 * hidden
    return {
        "model.hidden_size": hidden,
        "model.num_layers": layers,
        "model.head_dim": head_dim,
        "model.num_heads": hidden // head_dim,
        "model.num_experts": experts,
        "model.top_k": top_k,
        "model.granularity": granularity,
        "model.expert_width": width // top_k if experts else 0,
        "model.dense_width": 0 if experts else width,
        "optimizer.learning_rate": rate,
    }


PROXIES = (
    (256, 6, 64, 2e-3),
    (384, 8, 64, 1.5e-3),
    (512, 10, 64, 1.2e-3),
    (768, 12, 64, 9e-4),
    (1024, 16, 64, 6e-4),
    (1536, 20, 128, 4e-4),
)
SMALL = ((8, 2, 8, 1e-2), (16, 2, 8, 8e-3), (24, 2, 8, 7e-3), (32, 2, 8, 6e-3), (48, 2, 8, 5e-3))

ablation = Ablation(
    question="How does the NELBO fall with active parameters and tokens, dense and sparse, and do routers stay healthy?",
    ladder=Ladder(
        families={
            "dense": tuple(model(*shape) for shape in PROXIES),
            "top-2 of 8": tuple(model(*shape, experts=8, top_k=2) for shape in PROXIES),
            "top-2 of 32": tuple(model(*shape, experts=32, top_k=2) for shape in PROXIES),
            "top-8 of 64": tuple(model(*shape, experts=16, top_k=2, granularity=4) for shape in PROXIES),
        },
        flops=(1e17, 4e17, 1.6e18, 6.4e18, 2.56e19),
        tokens_per_parameter=(20.0,),
        between=(4, 500),
    ),
    base="proxy",
    settings={"trainer.precision": "bf16", "trainer.batch_size": 256, "trainer.validate_every": 0},
    metric="val/nelbo",
    secondary=("load/max_vio", "val/z_loss"),
    seeds=range(1),
    sizes={
        "quick": Size(
            ladder=Ladder(
                families={
                    "dense": tuple(model(*shape) for shape in SMALL),
                    "top-2 of 8": tuple(model(*shape, experts=8, top_k=2) for shape in SMALL),
                },
                flops=(1.5e10, 3e10, 6e10, 1.2e11),
                tokens_per_parameter=(10.0,),
                between=(1, 300),
                least_steps=360,  # before that hardly more than the frequencies of symbols is learned
            ),
            base="tiny",
            settings={
                "data.corpus": "markov",
                "data.sequence_length": 16,
                "data.validation_sequences": 4096,
                "trainer.precision": "fp32",
                "trainer.batch_size": 32,
            },
        ),
    },
)
