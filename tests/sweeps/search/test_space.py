"""Points of the space, as Optuna draws them and as configs have them."""

import optuna
import pytest

from core.config.loading import build
from core.config.presets import preset
from core.config.run import config_hash, to_dict
from core.errors import UserError
from sweeps.search.feasible import memory_gb
from sweeps.search.plan import plan
from sweeps.search.space import distributions, draw, ordered, parameters
from sweeps.search.spec import Choice, Int, Log, Uniform, range_text
from tests.sweeps.search.conftest import ROUTER, WEIGHT, declare

UPDATE, SHARE = "model.router.bias_update_rate", "data.variable_length_share"
SPACE = {
    UPDATE: Log(1e-4, 1e-1, when={ROUTER: ("bias_balanced",)}),  # before what it depends on
    ROUTER: Choice(("topk", "bias_balanced")),
    WEIGHT: Log(1e-4, 1.0, zero=True),
    "model.num_experts": Choice((2, 4, 8)),
    "model.top_k": Int(1, 4),
    SHARE: Uniform(0.0, 0.5),
}
FREE = {key: value for key, value in declare().settings.items() if key not in SPACE}


def draws(search, count=200):
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(count):
        trial = study.ask()
        yield draw(trial, search, {}), trial.params
        study.tell(trial, state=optuna.trial.TrialState.FAIL)


def test_draws_lie_in_the_space_and_conditions_hold() -> None:
    search = declare(space=SPACE)
    seen = [settings for settings, _ in draws(search)]
    for settings in seen:
        assert all(search.space[key].holds(value) for key, value in settings.items())
        assert (UPDATE in settings) == (settings[ROUTER] == "bias_balanced")
    zeros = sum(settings[WEIGHT] == 0 for settings in seen)
    assert 70 < zeros < 130 and {settings["model.top_k"] for settings in seen} == {1, 2, 3, 4}
    small = sum(0 < settings[WEIGHT] < 1e-2 for settings in seen)
    assert 0.35 < small / (200 - zeros) < 0.65  # half of a logarithmic range


def test_settings_and_parameters_are_the_same_point() -> None:
    search = declare(space=SPACE)
    for settings, params in draws(search, 20):
        assert parameters(settings, search) == params
        known = {name for key, p in SPACE.items() for name in distributions(key, p)}
        assert set(params) <= known


def test_ranges_are_said_in_words() -> None:
    assert range_text(Log(1e-4, 1.0, zero=True)) == "0.0001 to 1, logarithmic, or 0"
    assert range_text(Int(2, 8, step=2)) == "2 to 8 by 2" and range_text(Choice((1, "a"))) == "1, a"
    assert range_text(Uniform(0, 0.5, when={ROUTER: ("topk",)})) == "0 to 0.5; where model.router.kind is topk"


def test_order_puts_conditions_behind_what_they_depend_on() -> None:
    keys = ordered(SPACE)
    assert keys.index(ROUTER) < keys.index(UPDATE) and sorted(keys) == sorted(SPACE)
    with pytest.raises(UserError, match="depend on each other"):
        ordered({"a": Int(0, 1, when={"b": (0,)}), "b": Int(0, 1, when={"a": (0,)})})


def test_what_cannot_be_trained_is_said_and_how_far_off_it_is() -> None:
    common = {"space": SPACE, "settings": FREE, "control": {"model.num_experts": 2}}
    free = plan("toy", declare(**common)).resolver
    point = dict(free.control_settings)
    four, eight = (memory_gb(free.resolve(point | {"model.num_experts": n}).config) for n in (4, 8))
    resolver = plan("toy", declare(**common, memory_gb=four)).resolver
    assert resolver.resolve(point).config == resolver.control
    assert resolver.resolve(point | {"model.num_experts": 4}).config is not None
    large = resolver.resolve(point | {"model.num_experts": 8})
    assert large.config is None and "above memory_gb=" in large.reason
    assert large.constraints == {"memory_gb": pytest.approx(eight - four)}
    many = resolver.resolve(point | {"model.top_k": 4})
    assert many.config is None and many.constraints == {"top_k <= num_experts": 2.0}


def test_configs_of_points_are_those_that_settings_make() -> None:
    search = declare(space=SPACE, settings=FREE)
    resolver = plan("toy", search).resolver
    shared = (to_dict(preset("tiny")), FREE)
    for settings, _ in draws(search, 12):
        found = resolver.resolve(settings).config
        if found is not None:
            assert config_hash(found) == config_hash(build(*shared, settings))
    whole = resolver.resolve(dict(resolver.control_settings) | {WEIGHT: 1}).config
    assert config_hash(whole) == config_hash(build(*shared, resolver.control_settings, {WEIGHT: 1}))


def test_matching_gives_every_configuration_the_controls_flops() -> None:
    from core.model.flops import flops_per_token

    settings = {"model.expert_width": 48}
    search = declare(space=SPACE, match="active_flops", settings=FREE | settings)
    resolver = plan("toy", search).resolver
    found = resolver.resolve(dict(resolver.control_settings) | {"model.top_k": 1}).config
    assert found.model.expert_width == 96
    assert flops_per_token(found) == pytest.approx(flops_per_token(resolver.control), rel=0.01)
