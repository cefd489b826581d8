"""Passes at several timesteps, by known answers: networks whose routing can't depend on the timestep, or only on it."""

from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import entr

from analysis.routing.profile import crossed_profile, paired_change
from core.config.loading import build
from core.config.model import ROUTERS
from core.config.run import RunConfig
from core.data.module import MaskedTextModule, held_out
from core.diffusion.batch import Batch
from core.diffusion.masking import Masking
from core.diffusion.prediction import predict
from core.errors import UserError
from core.model.transformer import Denoiser, initialise
from core.probes.routing import Choices, check_probe, probe_routing, rerouted
from core.runtime.random_streams import torch_stream
from tests.core.model.test_moe import reference_moe
from tests.core.training.test_run import CAUSAL, DENSE, QUICK

SEQUENCES, TIMESTEPS, MASK = 128, 4, 256


def frozen(kind: str = "topk", **changes: Any) -> tuple[RunConfig, Denoiser]:
    """A network of random weights, of a router that is told something where it can be."""
    settings = {"model.router.kind": kind, "data.sequence_length": 16}
    config = build(QUICK, settings, {key.replace("__", "."): value for key, value in changes.items()})
    denoiser = Denoiser(config.model)
    initialise(denoiser, 3)
    return config, denoiser.eval()


def probed(config: RunConfig, denoiser: Denoiser):
    tokens_GL, maskable_GL = held_out(config, SEQUENCES)
    return probe_routing(config, denoiser, tokens_GL, maskable_GL, timesteps=TIMESTEPS)


def batch_at(config: RunConfig, t: float, told_at: float | None = None) -> tuple[torch.Tensor, Batch]:
    """What the network sees of 8 sequences at a timestep, and the batch."""
    tokens_BL, _ = held_out(config, 8)
    masked_BL = torch.rand(tokens_BL.shape, generator=torch.Generator().manual_seed(1)) < t
    full_B = torch.full((8,), t)
    masking = Masking(masked_BL, full_B, 1 / full_B, torch.full((8,), float(tokens_BL.shape[1])))
    router_timestep_B = full_B if told_at is None else torch.full((8,), told_at)
    return tokens_BL.masked_fill(masked_BL, MASK), Batch.of(tokens_BL, masking, router_timestep_B)


def choices_of(prediction) -> list[Choices]:
    return [Choices(layer.routing.gates_NK, layer.routing.experts_NK) for layer in prediction.routings]


def test_counts_are_those_of_a_loop_over_tokens() -> None:
    config, denoiser = frozen()
    found = probed(config, denoiser)
    assert found.timestep_T.tolist() == [0.125, 0.375, 0.625, 0.875]
    tokens_GL, _ = held_out(config, SEQUENCES)
    noise_GL = torch.rand(tokens_GL.shape, generator=torch_stream(config.seed, "probe masks"))
    g, t = 50, 2
    masked_L = noise_GL[g] < found.timestep_T[t]
    with torch.no_grad():
        _, routings = denoiser(tokens_GL[g : g + 1].masked_fill(masked_L, MASK))
    everywhere, fixed = np.zeros((2, 2, 4), int), np.zeros((2, 2, 4), int)
    for layer, routing in enumerate(routings):
        for place, experts_K in enumerate(routing.routing.experts_NK.tolist()):
            for expert in experts_K:
                everywhere[layer, int(masked_L[place]), expert] += 1
                if noise_GL[g, place] < 0.125 or noise_GL[g, place] >= 0.875:
                    fixed[layer, int(masked_L[place]), expert] += 1
    np.testing.assert_array_equal(found.all_SGTME[:, g, t], everywhere)
    np.testing.assert_array_equal(found.fixed_SGTME[:, g, t], fixed)
    assert (found.all_SGTME.sum((-1, -2)) == 16 * config.model.top_k).all()
    totals_SGTM = found.fixed_SGTME.sum(-1)
    assert (totals_SGTM == totals_SGTM[:, :, :1]).all()  # status, and which tokens count, are the same at all timesteps


def test_the_nelbo_is_the_weighted_cross_entropy_and_the_size_of_a_pass_changes_nothing(monkeypatch) -> None:
    config, denoiser = frozen()
    found = probed(config, denoiser)
    tokens_GL, _ = held_out(config, SEQUENCES)
    noise_GL = torch.rand(tokens_GL.shape, generator=torch_stream(config.seed, "probe masks"))
    masked_GL = noise_GL < 0.375
    with torch.no_grad():
        logits_GLV, _ = denoiser(tokens_GL.masked_fill(masked_GL, MASK))
    surprise_GL = -logits_GLV.log_softmax(-1).gather(-1, tokens_GL[..., None])[..., 0]
    expected_G = (surprise_GL * masked_GL).sum(1) / 0.375 / 16
    np.testing.assert_allclose(found.nelbo_GT[:, 1], expected_G, rtol=1e-4)
    monkeypatch.setattr("core.probes.routing.TOKENS", 50 * 16)
    parts = probed(config, denoiser)
    np.testing.assert_array_equal(parts.all_SGTME, found.all_SGTME)
    np.testing.assert_array_equal(parts.fixed_SGTME, found.fixed_SGTME)
    np.testing.assert_allclose(parts.swapped_GT, found.swapped_GT, rtol=1e-4)


@pytest.mark.parametrize("kind", ["hash", "topk"])
def test_nothing_is_found_where_routing_cannot_depend_on_the_timestep(kind: str) -> None:
    """A hash of the token; and token choice in a network whose attention writes nothing, so that no token sees another."""
    config, denoiser = frozen(kind)
    for layer in denoiser.layers:
        layer.attention.o_proj.weight.data.zero_()
    found = probed(config, denoiser)
    assert found.told_GT is None
    profile = crossed_profile(found.fixed_SGTME, rng=np.random.default_rng(0), resamples=99)
    assert (profile.pvalue_S == 1).all() and (profile.adjusted_S == 1).all()
    np.testing.assert_allclose(profile.nats_S, 0, atol=1e-9)
    np.testing.assert_allclose(found.swapped_GT, found.nelbo_GT, rtol=1e-5)  # tokens are routed there as here


def test_token_choice_may_depend_on_the_timestep_through_context_alone() -> None:
    config, denoiser = frozen("topk")
    for layer in denoiser.layers:
        layer.attention.v_proj.weight.data.mul_(30)
        layer.attention.o_proj.weight.data.mul_(30)
    found = probed(config, denoiser)
    assert crossed_profile(found.fixed_SGTME, rng=np.random.default_rng(0), resamples=99).pvalue_S.min() == 0.01
    assert paired_change(found.nelbo_GT, found.swapped_GT).standard_error > 0


def test_a_router_that_knows_nothing_but_the_timestep_is_found_unless_it_is_told_anothers() -> None:
    for sees, depends in (("timestep", True), ("mask_ratio", True), ("shuffled", False), ("constant", False)):
        config, denoiser = frozen("timestep_only", model__router__sees=sees)
        for layer in denoiser.layers:
            layer.moe.router.time_EF.data.mul_(50)  # so that the experts' inputs differ much
        found = probed(config, denoiser)
        profile = crossed_profile(found.fixed_SGTME, rng=np.random.default_rng(0), resamples=199)
        assert (profile.adjusted_S <= 0.05).all() == depends, (sees, profile)
        assert found.told_GT is not None
        if sees == "constant":
            np.testing.assert_array_equal(found.told_GT, found.nelbo_GT)
        if sees == "timestep":
            assert (found.told_GT != found.nelbo_GT).any()
            # All tokens of a timestep meet the same two experts: what is left is to enumerate.
            chosen_STE = found.fixed_SGTME.sum((1, 3)) > 0
            assert (chosen_STE.sum(-1) == 2).all()
            exact_S = entr(chosen_STE.mean(1) / 2).sum(-1) - np.log(2)
            np.testing.assert_allclose(profile.nats_S, exact_S, atol=1e-9)
            np.testing.assert_allclose(profile.share_S, exact_S / (exact_S + np.log(2)), atol=1e-9)


@pytest.mark.parametrize("kind", ["topk", "adaptive_k", "expert_choice", "additive", "soft"])
def test_routing_that_is_put_in_its_own_place_changes_no_bit(kind: str) -> None:
    config, denoiser = frozen(kind)
    input_BL, batch = batch_at(config, 0.5)
    with torch.no_grad():
        own = predict(denoiser, input_BL, batch)
        some_N = torch.rand(input_BL.numel(), generator=torch.Generator().manual_seed(2)) < 0.5
        for where_N in (torch.ones_like(some_N), some_N, torch.zeros_like(some_N)):
            with rerouted(denoiser, choices_of(own), where_N):
                again = predict(denoiser, input_BL, batch)
            assert torch.equal(own.nelbo_B, again.nelbo_B)


def test_swapping_all_that_routers_said_when_told_otherwise_is_telling_them_otherwise() -> None:
    config, denoiser = frozen("timestep_only")
    (input_BL, batch), (_, otherwise) = batch_at(config, 0.5), batch_at(config, 0.5, told_at=0.9)
    with torch.no_grad():
        own, told = (predict(denoiser, input_BL, one) for one in (batch, otherwise))
        with rerouted(denoiser, choices_of(told), torch.ones(input_BL.numel(), dtype=torch.bool)):
            swapped = predict(denoiser, input_BL, batch)
        after = predict(denoiser, input_BL, batch)
    assert not torch.equal(own.nelbo_B, told.nelbo_B)
    assert torch.equal(swapped.nelbo_B, told.nelbo_B)
    assert torch.equal(after.nelbo_B, own.nelbo_B)  # the hooks are gone


@pytest.mark.parametrize("kind", ["topk", "expert_choice"])
def test_tokens_get_the_experts_and_gates_that_are_given(kind: str) -> None:
    config, denoiser = frozen(kind)
    input_BL, batch = batch_at(config, 0.5)
    experts, tokens = config.model.experts, input_BL.numel()
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        places = predict(denoiser, input_BL, batch).routings[0].routing.experts_NK.shape[1]
        given = Choices(
            torch.rand(tokens, places, generator=generator),
            torch.rand(tokens, experts, generator=generator).argsort(1)[:, :places],
        )
        where_N = torch.rand(tokens, generator=generator) < 0.5
        seen: dict[str, torch.Tensor] = {}
        moe = denoiser.mixtures()[0]
        keep = moe.register_forward_hook(lambda _, inputs, out: seen.update(x_ND=inputs[0], mixed_ND=out[0]))
        with rerouted(denoiser, [given] * 2, where_N):
            routing = predict(denoiser, input_BL, batch).routings[0].routing
        keep.remove()
        expected_ND = reference_moe(moe.experts, seen["x_ND"], routing.gates_NK, routing.experts_NK)
    assert torch.equal(routing.experts_NK[where_N], given.experts_NK[where_N])
    assert torch.equal(routing.gates_NK[where_N], given.gates_NK[where_N])
    assert not torch.equal(routing.gates_NK[~where_N], given.gates_NK[~where_N])
    torch.testing.assert_close(seen["mixed_ND"], expected_ND, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ROUTERS)
def test_every_rule_can_be_probed(kind: str) -> None:
    config, denoiser = frozen(kind)
    found = probed(config, denoiser)
    assert (found.told_GT is not None) == ROUTERS[kind].sees_timestep
    assert np.isfinite(found.swapped_GT).all() and (found.fixed_SGTME <= found.all_SGTME).all()
    profile = crossed_profile(found.fixed_SGTME, rng=np.random.default_rng(0), resamples=99)
    assert np.isfinite(profile.nats_S).all() and ((profile.pvalue_S > 0) & (profile.adjusted_S <= 1)).all()


def test_a_run_in_bf16_is_probed_in_bf16() -> None:
    (config, denoiser), (half, _) = frozen(), frozen(trainer__precision="bf16")
    exact, rough = probed(config, denoiser), probed(half, denoiser)
    assert (exact.nelbo_GT != rough.nelbo_GT).any()
    np.testing.assert_allclose(rough.nelbo_GT, exact.nelbo_GT, rtol=0.02)
    moved = np.abs(exact.all_SGTME - rough.all_SGTME).sum() / exact.all_SGTME.sum()
    assert moved < 0.1


def test_prompts_are_neither_masked_nor_counted() -> None:
    config, denoiser = frozen()
    tokens_GL, _ = held_out(config, SEQUENCES)
    maskable_GL = torch.zeros_like(tokens_GL, dtype=torch.bool)
    maskable_GL[:, 10:] = True
    found = probe_routing(config, denoiser, tokens_GL, maskable_GL, timesteps=TIMESTEPS)
    assert (found.all_SGTME.sum((-1, -2)) == 6 * config.model.top_k).all()


def test_held_out_sequences_are_those_that_validate_the_run() -> None:
    config, _ = frozen()
    tokens_GL, _ = held_out(config, 100)
    validated = torch.cat([batch.tokens_BL for batch in MaskedTextModule(config).val_dataloader()])
    assert torch.equal(tokens_GL[:32], validated)
    with pytest.raises(UserError, match=r"holds out only 6250 sequences of length 16, fewer than 6251"):
        held_out(config, 6251)


def test_what_has_no_routing_by_timestep_is_refused() -> None:
    refused = ((DENSE, 4, "dense"), (CAUSAL, 4, "no timesteps"), ({}, 1, "at least 2 timesteps"))
    for settings, timesteps, expected in refused:
        with pytest.raises(UserError, match=expected):
            check_probe(build(QUICK, settings), timesteps)
