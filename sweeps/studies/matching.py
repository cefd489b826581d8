"""Compute matching: expert widths at which every arm spends the control's FLOPs per token."""

from collections.abc import Mapping
from dataclasses import replace

from core.config.run import RunConfig
from core.errors import UserError
from core.model.flops import flops_per_token

SOLVED = "model.expert_width"
TOLERANCE = 0.01


def match_flops(configs: Mapping[str, RunConfig]) -> list[RunConfig]:
    """Give every arm the expert width at which its training FLOPs per token equal the first arm's, the control's.

    Raises UserError when the nearest possible width is more than 1 % off, saying by how much.
    """
    control, *_ = configs.values()
    target = flops_per_token(control)
    return [control if config is control else _solve(name, config, target) for name, config in configs.items()]


def _solve(name: str, config: RunConfig, target: float) -> RunConfig:
    # FLOPs are affine in the expert width, so two points give the line.
    if not config.model.num_experts:
        raise UserError(
            f"arm {name}: match='active_flops' solves {SOLVED}, and a dense model has none; leave match out"
        )
    # grouped matmul needs rows of 16 bytes
    multiple = (4 if config.trainer.precision == "fp32" else 8) * config.model.granularity
    narrow, wide = (flops_per_token(_with_width(config, width)) for width in (multiple, 2 * multiple))
    exact = multiple * (1 + (target - narrow) / (wide - narrow))
    width = max(multiple, multiple * round(exact / multiple))
    solved = _with_width(config, width)
    error = flops_per_token(solved) / target - 1
    if abs(error) > TOLERANCE:
        raise UserError(
            f"arm {name}: match='active_flops' can't be met: the nearest {SOLVED}={width} is {error:+.1%} off the "
            f"control's {target:.4g} FLOPs per token, and at most {TOLERANCE:.0%} is allowed; use wider experts in the "
            "base config or other levels"
        )
    return solved


def _with_width(config: RunConfig, width: int) -> RunConfig:
    return replace(config, model=replace(config.model, expert_width=width))
