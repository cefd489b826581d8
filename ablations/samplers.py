"""What do block decoding, fewer network calls and the remasking rule cost in answers?

(LLaDA-MoE, arXiv 2509.24389, open question 3.)

Found at the smallest scale (`quick`: 346,784 parameters, balanced brackets, 6 models, 512 prompts, responses of 16 tokens;
points of exact match beside one token a call without blocks at 49.3 %, 95 % interval, Holm over 24 ways; 2026-11-26, commit
db893e7): blocks of 8 cost 4.8 [2.6, 6.9], of 4 6.0 [3.6, 8.4]; two tokens a call 20.9 [14.5, 27.3]; a threshold of 0.8
nothing (equivalent, ± 0.6) at 3.6 tokens a call; random remasking 9.1 [6.1, 12.1]. The same network trained causally for as
long answers 25.4 [17.4, 33.5] more. Nothing has been run at full size.
"""

from sweeps.spec import Ablation, Decoders, Factor, Level, Size

KIND, CAUSAL = "objective.kind", "model.causal"
BLOCK, CALL, RULE, THRESHOLD = "block_length", "tokens_per_call", "remasking", "threshold"
RULES = ("low_confidence", "entropy", "margin", "random")


def decoders(blocks: tuple[int | str, ...], calls: tuple[int, ...], rules: tuple[str, ...], examples: int) -> Decoders:
    """Every block, rule and number of tokens a call; and thresholds, which leave that number to the model."""
    ways: list[dict[str, Level]] = [
        {BLOCK: block, RULE: rule, CALL: call} for rule in rules for block in blocks for call in calls
    ]
    ways += [{BLOCK: block, CALL: None, THRESHOLD: sure} for block in blocks for sure in (0.8, 0.95)]
    control: dict[str, Level] = {BLOCK: "full", RULE: "low_confidence", CALL: 1, THRESHOLD: None}
    return Decoders(
        factors=(
            Factor(BLOCK, blocks, label="block"),
            Factor(RULE, rules, label="by"),
            Factor(CALL, (*calls, None), label="tokens a call"),
            Factor(THRESHOLD, (None, 0.8, 0.95)),
        ),
        control=control,
        arms=tuple(way for way in ways if control | way != control),
        examples=examples,
        margin=0.05,
    )


ablation = Ablation(
    question="What do block decoding, fewer network calls and the remasking rule cost in right answers, on the same models?",
    # Beside them the same network, trained as much and decoded token after token.
    factors=(Factor(KIND, ("sft", "autoregressive"), label="trained by"), Factor(CAUSAL, (False, True))),
    control={KIND: "sft", CAUSAL: False},
    arms=({KIND: "autoregressive", CAUSAL: True},),
    base="proxy_3m",
    # Balanced brackets with a third hidden: most holes have several fillings, and they must fit each other.
    settings={"data.corpus": "task:dyck_long", "data.sequence_length": 512},
    metric="val/nelbo",
    seeds=range(6),
    decoders=decoders((32, 64, 128, "full"), (1, 2, 4, 8), RULES, 512),
    sizes={
        "quick": Size(
            base="tiny",
            settings={
                "data.corpus": "task:dyck",
                "data.sequence_length": 32,
                "trainer.batch_size": 32,
                "trainer.steps": 600,
                "trainer.validate_every": 100,
            },
            decoders=decoders((4, 8, "full"), (1, 2, 4), ("low_confidence", "random"), 512),
        ),
    },
)
