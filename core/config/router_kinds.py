"""Built-in kinds of routers: what is true of each, as planning and checks read it, without torch.

Shapes: E experts, D hidden size, F features and T bins of a timestep.
"""

from core.config.model import ROUTERS, ModelConfig, RouterConfig, RouterKind, Weight, linear
from core.errors import require

EC_DLM_K = (8, 20, 32)  # least, mean and most experts a token, as EC-DLM trains (arXiv 2604.01622)


def _timed(model: ModelConfig) -> tuple[Weight, ...]:
    return (Weight("time_EF", (model.experts, model.router.time_features), per_sequence=True),)


def _linear_and_timed(model: ModelConfig) -> tuple[Weight, ...]:
    return (*linear(model), *_timed(model))


def _film(model: ModelConfig) -> tuple[Weight, ...]:
    shape = (2 * model.hidden_size, model.router.time_features)
    return (*linear(model), Weight("film_CF", shape, per_sequence=True))


def _bins(model: ModelConfig) -> tuple[Weight, ...]:
    return (*linear(model), Weight("bin_TE", (model.router.time_bins, model.experts), per_sequence=True))


def _check_schedule(router: RouterConfig) -> None:
    require(
        router.k_schedule != "constant",
        "model.router.k_schedule=constant with model.router.kind=adaptive_k is model.router.kind=topk: use that",
    )


def _check_gates(router: RouterConfig) -> None:
    require(
        not router.renormalise,
        "model.router.renormalise=true would undo the gates' scale of model.router.kind=ec_dlm, which are a softmax over "
        "the chosen experts: leave it out",
    )


def _check_adaptive_k(model: ModelConfig) -> None:
    most = 2 * model.experts_per_token - 1
    require(
        most <= model.experts,
        f"model.router.kind=adaptive_k gives up to 2 k - 1 = {most} experts to a token, and there are {model.experts}: use a "
        "smaller model.top_k",
    )


def _check_ec_dlm(model: ModelConfig) -> None:
    require(
        model.shared_expert_width % model.width_of_expert == 0,
        f"model.shared_expert_width={model.shared_expert_width} must be a multiple of an expert's width, "
        f"{model.width_of_expert}, with model.router.kind=ec_dlm, whose gates are scaled by the number of shared experts",
    )


def _room_for_twice(model: ModelConfig) -> float:
    fixed = model.router.k_schedule in (None, "constant")
    return model.experts_per_token if fixed else min(model.experts, 2 * model.experts_per_token)


def _room_of_ec_dlm(model: ModelConfig) -> float:
    chosen, (_, mean, most) = model.experts_per_token, EC_DLM_K
    return chosen if model.router.k_schedule == "constant" else min(model.experts, chosen * most / mean)


BUILT_IN = (
    RouterKind("topk", "core.model.routing:TopKRouter"),
    RouterKind("bias_balanced", "core.model.routers.token_choice:BiasBalancedRouter",
               lambda model: (*linear(model), Weight("bias_E", (model.experts,), buffer=True))),
    RouterKind("additive", "core.model.routers.timed:AdditiveRouter", _linear_and_timed,
               sees_timestep=True),
    RouterKind("film", "core.model.routers.timed:FilmRouter", _film, sees_timestep=True, input_copies=3),
    RouterKind("bin_bias", "core.model.routers.timed:BinBiasRouter", _bins, sees_timestep=True),
    RouterKind("timestep_only", "core.model.routers.timed:TimestepOnlyRouter", _timed, sees_timestep=True,
               input_copies=0),
    RouterKind("unmodulated", "core.model.routers.timed:UnmodulatedRouter",
               _linear_and_timed, sees_timestep=True, input_copies=2),
    RouterKind("adaptive_k", "core.model.routers.token_choice:AdaptiveKRouter", follows_ratio=True,
               rows=lambda model: 2 * model.experts_per_token - 1, check=_check_adaptive_k,
               check_settings=_check_schedule),
    RouterKind("expert_choice", "core.model.routers.expert_choice:ExpertChoiceRouter", follows_ratio=True,
               experts_choose=True, sees_sequence=True, rows=_room_for_twice),
    RouterKind("ec_dlm", "core.model.routers.expert_choice:ECDLMRouter", follows_ratio=True, experts_choose=True,
               sees_sequence=True, rows=_room_of_ec_dlm, check=_check_ec_dlm, check_settings=_check_gates),
    RouterKind("soft", "core.model.routers.controls:SoftRouter", all_experts=True),
    RouterKind("hash", "core.model.routers.controls:HashRouter", lambda model: (), input_copies=0),
    RouterKind("random", "core.model.routers.controls:RandomRouter", lambda model: (), sees_sequence=True,
               input_copies=0),
)  # fmt: skip
for _kind in BUILT_IN:
    ROUTERS.add(_kind)
