"""Transfer of a winner to a larger model: settings that stay, and settings that are rescaled, by which rule.

Only what the study decided is carried; all else is the target's own. A rule says how an optimum moves with scale, as a
ratio between proxy and target: its constant is of the models that it was fitted on.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

from core.config.loading import build
from core.config.run import RunConfig, get_field, to_dict
from core.errors import UserError
from core.model.flops import count, training_flops
from core.records.designs import Design
from core.registry import nearest
from sweeps.studies.matching import SOLVED, match_flops

RATE, BATCH, WARMUP = "optimizer.learning_rate", "trainer.batch_size", "optimizer.warmup_steps"
EXPERTS, CHOSEN, SHARED = "model.num_experts", "model.top_k", "model.shared_expert_width"

# Sections and keys that mean the same at any scale.
AS_IT_IS = (
    "objective.", "model.router.", "model.granularity", "model.qk_norm", "data.variable_length_share",
    "data.variable_length_min", "optimizer.beta1", "optimizer.beta2", "optimizer.weight_decay",
    "optimizer.gradient_clip", "optimizer.final_lr_fraction", "optimizer.schedule", "optimizer.decay_fraction",
)  # fmt: skip


@dataclass(frozen=True)
class Scale:
    """Scale of a run: training FLOPs, hidden size, active parameters, tokens."""

    flops: float
    hidden_size: int
    active: int
    tokens: float

    @classmethod
    def of(cls, config: RunConfig) -> "Scale":
        """The scale of a run."""
        tokens = config.tokens_per_step * config.trainer.steps
        return cls(training_flops(config), config.model.hidden_size, count(config.model).active, tokens)


@dataclass(frozen=True)
class Rule:
    """Factors by which learning rate and batch (in tokens) change from one scale to another."""

    name: str
    source: str
    learning_rate: Callable[[Scale, Scale], float]
    batch: Callable[[Scale, Scale], float]


def _power(exponent: float) -> Callable[[Scale, Scale], float]:
    return lambda proxy, target: (target.flops / proxy.flops) ** exponent


def _same(proxy: Scale, target: Scale) -> float:
    return 1.0


RATE_EXPONENT, BATCH_EXPONENT = -0.2447, 0.3481
RULES = {
    rule.name: rule
    for rule in (
        Rule(
            "compute",
            "the published LLaDA-MoE scaling fits, B* = 0.374 C^0.3481 tokens and eta* = 64.8 C^-0.2447, by their exponents",
            _power(RATE_EXPONENT),
            _power(BATCH_EXPONENT),
        ),
        Rule(
            "width",
            "muP for hidden matrices under Adam, eta ~ 1 / width (Tensor Programs V, arXiv 2203.03466, Table 8), for all "
            "parameters alike; the batch stays",
            lambda proxy, target: proxy.hidden_size / target.hidden_size,
            _same,
        ),
        Rule("none", "carried as it is", _same, _same),
    )
}


def published_optimum(flops: float) -> tuple[float, float]:
    """The learning rate and the batch, in tokens, that the published LLaDA-MoE fits give for a training budget."""
    return 64.8 * flops**RATE_EXPONENT, 0.374 * flops**BATCH_EXPONENT


@dataclass(frozen=True)
class Carried:
    """One setting of the arm: its value on the proxy, on the target, and by what that follows."""

    key: str
    proxy: Any
    target: Any
    how: str


def rule_of(name: str) -> Rule:
    """The rule of that name. Raises UserError for an unknown one."""
    if name not in RULES:
        raise UserError(f"unknown rule '{name}': {nearest(name, list(RULES))}")
    return RULES[name]


def decided(design: Design, arm: str, proxy: RunConfig) -> dict[str, Any]:
    """Settings that a verdict decides, by key: the winner's values where the control has others; nothing for the control.

    proxy: the arm's own config, which has the value of a key that only the control sets.
    """
    settings = {entry.name: entry.settings for entry in design.arms}
    own, controls = settings[arm], settings[design.control]
    values = {key: own[key] if key in own else get_field(proxy, key) for key in (*own, *controls)}
    return {key: value for key, value in values.items() if key not in controls or controls[key] != value}


def carry(
    settings: Mapping[str, Any],
    proxy: RunConfig,
    target: RunConfig,
    rule: Rule,
    *,
    match: bool = False,
    devices: int = 1,
) -> tuple[RunConfig, list[Carried]]:
    """An arm's settings on another model: the config to train there, and what became of each setting.

    settings: the arm's factor levels that are to be carried: without any the target stays as it is; proxy: its config. match:
    solve the expert width at which FLOPs per token equal the target's own, as the ablation did for its arms. devices: the
    batch is rounded to a multiple of them. The target's tokens stay what they are: with another batch it takes other steps.
    Raises UserError for a setting that can't be carried: what the target itself says, such as its width.
    """
    if not settings:
        return target, []
    small, large = Scale.of(proxy), Scale.of(target)
    new: dict[str, tuple[Any, str]] = {}
    for key, value in settings.items():
        if key in (EXPERTS, CHOSEN):
            new |= _experts(settings, proxy, target)
        elif key == RATE:
            new[key] = (
                float(f"{value * rule.learning_rate(small, large):.3g}"),
                f"rescaled by '{rule.name}': {rule.source}",
            )
        elif key == BATCH:
            tokens = value * proxy.data.sequence_length * rule.batch(small, large)
            rows = max(1, round(tokens / target.data.sequence_length / devices)) * devices
            new[key] = rows, f"rescaled in tokens by '{rule.name}': {rule.source}"
        elif key == WARMUP:
            continue  # when the steps are known, which follow from the batch
        elif key == SHARED:
            share = Fraction(value, proxy.model.expert_width) * target.model.expert_width
            new[key] = 8 * round(share / 8), "as the same share of an expert's width"
        elif any(key == known or (known.endswith(".") and key.startswith(known)) for known in AS_IT_IS):
            new[key] = value, "as it is"
        else:
            raise UserError(
                f"{key} can't be carried to another model: what holds of it at one scale says nothing of the target's own "
                f"{get_field(target, key)}; export without --target, or set it: {key}=VALUE"
            )
    config = build(to_dict(target), {key: value for key, (value, _) in new.items()})
    if config.tokens_per_step != target.tokens_per_step:
        config = with_tokens(config, large.tokens)
    if WARMUP in settings:
        new[WARMUP] = (
            round(settings[WARMUP] / proxy.trainer.steps * config.trainer.steps),
            "as the same share of all steps",
        )
        config = build(to_dict(config), {WARMUP: new[WARMUP][0]})
    told = [Carried(key, get_field(proxy, key), value, how) for key, (value, how) in new.items()]
    if match and config.model.num_experts:
        [_, config] = match_flops({"target": target, "arm": config})
        if config.model.expert_width != target.model.expert_width:
            how = "solved: the target's own training FLOPs per token"
            told.append(Carried(SOLVED, proxy.model.expert_width, config.model.expert_width, how))
    return config, told


def _experts(settings: Mapping[str, Any], proxy: RunConfig, target: RunConfig) -> dict[str, tuple[int, str]]:
    """Experts and top-k of the arm's activation ratio: what the ablation varied moves, what it held stays the target's."""
    ratio, model = Fraction(proxy.model.top_k, proxy.model.num_experts), target.model
    if not model.num_experts:
        raise UserError("the target is dense (model.num_experts=0): an activation ratio can't be carried to it")
    how = f"as the same activation ratio, {ratio}"
    if CHOSEN in settings:
        chosen = ratio * model.num_experts
        if chosen.denominator == 1 and chosen >= 1:
            return {EXPERTS: (model.num_experts, how), CHOSEN: (int(chosen), how)}
    experts = model.top_k / ratio
    if experts.denominator == 1:
        return {EXPERTS: (int(experts), how), CHOSEN: (model.top_k, how)}
    raise UserError(
        f"an activation ratio of {ratio} can't be had with the target's {model.num_experts} experts or top-{model.top_k}: "
        f"set {EXPERTS}= and {CHOSEN}="
    )


def with_tokens(config: RunConfig, tokens: float) -> RunConfig:
    """The config with as many steps as it takes to see so many tokens, rounded up."""
    steps = -(-int(tokens) // round(config.tokens_per_step))
    return replace(config, trainer=replace(config.trainer, steps=max(1, steps)))
