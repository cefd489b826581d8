import math
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from core.config.loading import build, load
from core.config.run import RunConfig, learning_rate_factor
from core.data.module import MaskedTextModule
from core.diffusion.losses import context_weights
from core.errors import UserError
from core.model.transformer import Layer
from core.records import run_record
from core.records.metrics import ratio_metric
from core.training.callbacks import TRAIN_COLUMNS, diagnose, stratified_error
from core.training.checks import check
from core.training.module import AdamW, MaskedDiffusion, auxiliary_losses
from core.training.run import seconds_per_step, train

QUICK = {
    "data.corpus": "markov", "data.sequence_length": 32, "data.validation_sequences": 32,
    "model.hidden_size": 32, "model.num_layers": 2, "model.num_heads": 2, "model.head_dim": 16,
    "model.num_experts": 4, "model.expert_width": 16, "optimizer.warmup_steps": 2,
    "trainer.steps": 12, "trainer.batch_size": 8, "trainer.validate_every": 5, "trainer.log_every": 5,
}  # fmt: skip
CAUSAL = {"model.causal": True, "objective.kind": "autoregressive"}
DENSE = {"model.num_experts": 0, "model.top_k": 0, "model.expert_width": 0, "model.dense_width": 32}


def quick(**changes) -> RunConfig:
    return build(QUICK, {key.replace("__", "."): value for key, value in changes.items()})


def test_a_run_leaves_a_whole_record(tmp_path) -> None:
    record = train(quick(), tmp_path, study={"arm": "control"})
    assert record.status == "complete" and record.reason is None
    assert run_record.read(tmp_path / "record.json") == record
    assert record.curve["step"] == [5, 10, 12]
    assert record.validation["step"] == [5, 10, 12]
    assert record.expert_load["step"] == [5, 10, 12]
    load_TLE = torch.tensor(record.expert_load["load"])
    assert load_TLE.shape == (3, 2, 4)
    torch.testing.assert_close(load_TLE.sum(-1), torch.ones(3, 2))
    assert record.metrics["val/nelbo"] == record.validation["val/nelbo"][-1]
    assert record.flops > 0 and record.tokens_per_second > 0 and record.parameters["active"] > 0
    assert record.data_fingerprint.startswith("markov:") and record.study == {"arm": "control"}
    assert record.provenance["packages"]["torch"].startswith(torch.__version__.split("+")[0])
    assert load(tmp_path / "config.yaml") == quick()


def test_the_saved_weights_are_the_validated_model(tmp_path) -> None:
    record, module = train(quick(), tmp_path), MaskedDiffusion(quick())
    module.denoiser.load_state_dict(load_file(tmp_path / "model.safetensors"))
    with torch.no_grad():
        nelbos = [module.predict(batch).nelbo_B for batch in MaskedTextModule(quick()).val_dataloader()]
    assert torch.cat(nelbos).mean().item() == pytest.approx(record.metrics["val/nelbo"], rel=1e-5)


def test_auxiliary_losses_train_and_stay_out_of_the_reported_nelbo() -> None:
    batch = next(iter(MaskedTextModule(quick()).train_dataloader()))
    off, on = (MaskedDiffusion(quick(objective__load_balancing_weight=w, objective__z_loss_weight=w)) for w in (0, 10))
    a, b = off.training_step(batch, 0), on.training_step(batch, 0)
    assert a["nelbo"].item() == b["nelbo"].item()
    assert a["loss"].item() == a["nelbo"].item()
    expected = b["nelbo"] + 10 * b["load_balancing"] + 10 * b["z_loss"]
    assert b["loss"].item() == pytest.approx(expected.item(), rel=1e-6)
    a["loss"].backward()
    b["loss"].backward()
    name = "denoiser.layers.0.moe.router.weight_ED"
    assert not torch.allclose(dict(off.named_parameters())[name].grad, dict(on.named_parameters())[name].grad)


def test_auxiliary_losses_are_means_of_what_each_layer_says() -> None:
    module = MaskedDiffusion(quick())
    batch = next(iter(MaskedTextModule(quick()).train_dataloader()))
    routings, cpu = module.predict(batch).routings, torch.device("cpu")
    load_balancing, z_loss = auxiliary_losses(routings, cpu)
    singles = [auxiliary_losses([routing], cpu) for routing in routings]
    assert load_balancing.item() == pytest.approx(sum(s[0].item() for s in singles) / 2, rel=1e-6)
    assert z_loss.item() == pytest.approx(sum(s[1].item() for s in singles) / 2, rel=1e-6)


def test_divergence_is_a_failed_record_with_step_and_reason(tmp_path) -> None:
    record = train(quick(optimizer__learning_rate=1e30, optimizer__gradient_clip=0), tmp_path)
    assert record.status == "failed" and "diverged at step 2: " in record.reason
    assert record.metrics == {}
    assert run_record.read(tmp_path / "record.json").reason == record.reason
    assert "TrainingDivergedError" in (tmp_path / "traceback.txt").read_text()


def break_outputs(monkeypatch, step: str, *names: str, at: int | None = None) -> None:
    """Let a kind of step give NaN under these names; only at that index, unless it is None."""
    method = getattr(MaskedDiffusion, step)

    def broken(self, batch, index):
        out = method(self, batch, index)
        return out | {name: out[name] * math.nan for name in names if at in (None, index)}

    monkeypatch.setattr(MaskedDiffusion, step, broken)


def test_the_step_of_divergence_is_the_first_bad_one(tmp_path, monkeypatch) -> None:
    break_outputs(monkeypatch, "training_step", "loss", "z_loss", at=6)
    assert train(quick(), tmp_path).reason == (
        "TrainingDivergedError: training diverged at step 7: all layers are finite, but z_loss is NaN or Inf"
    )


def test_an_interruption_leaves_no_record(tmp_path, monkeypatch) -> None:
    def interrupt(*_) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(MaskedDiffusion, "validation_step", interrupt)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        train(quick(), tmp_path)
    assert not (tmp_path / "record.json").exists()


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"model__vocab_size": 257, "model__eos_id": None, "model__pad_id": None}, "model.vocab_size=257 is too small"),
        ({"data__corpus": "nowhere"}, "data.corpus"),
        pytest.param(
            {"trainer__accelerator": "cuda"},
            "no CUDA device",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device"),
        ),
    ],
)
def test_mistakes_are_refused_before_training(tmp_path, settings: dict, expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        train(quick(**settings), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(UserError):
        check(quick(**settings))


def test_the_learning_rate_warms_up_and_decays() -> None:
    config = quick(trainer__steps=100, optimizer__warmup_steps=10, optimizer__final_lr_fraction=0.1)
    factors = [learning_rate_factor(config, step) for step in range(101)]
    assert factors[0] == 0.1 and factors[9] == 1.0 and factors[100] == pytest.approx(0.1)
    assert factors[55] == pytest.approx(0.55)
    assert all(a >= b for a, b in zip(factors[10:], factors[11:], strict=False))


def factors(**optimizer) -> list[float]:
    settings = {f"optimizer__{name}": value for name, value in optimizer.items()}
    config = quick(trainer__steps=20, optimizer__warmup_steps=4, **settings)
    return [learning_rate_factor(config, step) for step in range(20)]


def test_other_schedules_are_as_computed_by_hand() -> None:
    up = [0.25, 0.5, 0.75, 1.0]
    fallen = factors(schedule="wsd", decay_fraction=0.25, final_lr_fraction=0.5)  # stable to step 15, down over 5
    assert fallen == pytest.approx([*up, *[1.0] * 12, 0.9, 0.8, 0.7, 0.6])
    assert fallen[14:17] == pytest.approx([1.0, 1.0, 0.9])
    assert factors(schedule="constant") == [*up, *[1.0] * 16]
    falling = factors(schedule="wsd", decay_fraction=0.8, final_lr_fraction=0.0)
    assert falling == pytest.approx([*up, *[1 - i / 16 for i in range(16)]])
    assert factors()[12] == pytest.approx(0.55)  # half-way down the cosine, between 1 and 0.1


@pytest.mark.parametrize(
    ("settings", "expected"),
    [({"schedule": "wsd", "decay_fraction": 0.9}, r"warmup_steps=4 and a decay over 18 steps .* trainer.steps=20"),
     ({"decay_fraction": 0.5}, "decay_fraction=0.5 means nothing to optimizer.schedule=cosine"),
     ({"schedule": "wsd", "decay_fraction": 0.0}, "must lie in"),
     ({"schedule": "linear"}, r"one of \['cosine', 'wsd', 'constant'\]")],
)  # fmt: skip
def test_schedules_that_mean_nothing_are_refused(settings: dict, expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        factors(**settings)


def test_bf16_trains(tmp_path) -> None:
    record = train(quick(trainer__precision="bf16"), tmp_path)
    assert record.status == "complete", record.reason
    assert record.metrics["val/nelbo"] == pytest.approx(train(quick(), tmp_path / "b").metrics["val/nelbo"], rel=0.02)


def test_a_step_takes_time() -> None:
    assert 0 < seconds_per_step(quick(), steps=3) < 5


@pytest.mark.slow
def test_a_trained_model_approaches_the_entropy_of_the_source_from_above(tmp_path) -> None:
    config = quick(
        model__hidden_size=64, model__num_heads=2, model__head_dim=32, model__expert_width=64,
        optimizer__learning_rate=4e-3, data__validation_sequences=1024, trainer__validate_every=0,
        trainer__steps=400, trainer__batch_size=32, optimizer__warmup_steps=20, trainer__log_every=100,
    )  # fmt: skip
    record = train(replace(config, seed=1), tmp_path)
    excess, error = record.metrics["val/excess_nelbo"], record.metrics["val/nelbo_se"]
    entropy = record.metrics["val/nelbo"] - excess
    assert 1.0 < entropy < math.log(16)
    assert excess > -3 * error
    assert excess < 0.15 * (math.log(259) - entropy)
    assert excess < 0.25


def test_a_model_that_breaks_in_its_last_step_is_a_failed_run(tmp_path, monkeypatch) -> None:
    break_outputs(monkeypatch, "validation_step", "nelbo_B")
    record = train(quick(), tmp_path)
    assert record.status == "failed" and "validation is not finite" in record.reason


def test_a_broken_layer_is_named(tmp_path, monkeypatch) -> None:
    forward = Layer.forward

    def broken(self, x_BLD, rotation, *given):
        out, routing = forward(self, x_BLD, rotation, *given)
        self.calls = getattr(self, "calls", 0) + 1
        return (out * math.inf if self is layers[-1] and self.calls == 4 else out), routing

    layers: list[Layer] = []
    make = Layer.__init__
    monkeypatch.setattr(Layer, "__init__", lambda self, *args: (make(self, *args), layers.append(self))[0])
    monkeypatch.setattr(Layer, "forward", broken)
    record = train(quick(), tmp_path)
    expected = "TrainingDivergedError: training diverged at step 4: NaN or Inf first appeared in the output of layer 1"
    assert record.reason == expected


def test_a_diagnosis_names_the_first_step_and_the_first_place() -> None:
    rows = {name: torch.ones(4) for name in TRAIN_COLUMNS}
    rows |= {"sums_L": torch.ones(4, 3), "gradient_norms_P": torch.ones(4, 2)}
    names = ["first.weight", "last.weight"]
    assert diagnose(rows, names) is None
    rows["gradient_norms_P"][2] = math.nan
    assert diagnose(rows, names) == (2, "the loss is finite, but the gradient of last.weight is NaN or Inf")
    rows["loss"][2] = math.inf
    assert diagnose(rows, names) == (2, "every loss is finite, but their weighted sum is NaN or Inf")
    rows["nelbo"][2] = math.inf
    assert diagnose(rows, names) == (2, "all layers are finite, but nelbo is NaN or Inf")
    rows["sums_L"][1, 1:] = math.nan
    assert diagnose(rows, names) == (1, "NaN or Inf first appeared in the output of layer 0")
    rows["sums_L"][1, 0] = math.nan
    assert diagnose(rows, names) == (1, "NaN or Inf first appeared in the output of the embedding")


def test_the_cross_entropies_by_mask_ratio_average_to_the_nelbo(tmp_path) -> None:
    metrics = train(quick(data__validation_sequences=200), tmp_path).metrics
    bins = [metrics[ratio_metric(index)] for index in range(1, 11)]
    assert sum(bins) / 10 == pytest.approx(metrics["val/nelbo"], rel=0.02)


def test_the_standard_error_knows_the_strata() -> None:
    noise_N = torch.randn(2000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert stratified_error(noise_N) == pytest.approx(2000**-0.5, rel=0.1)
    trend_N = torch.linspace(0, 50, 2000, dtype=torch.float64)
    assert stratified_error(trend_N + noise_N) == pytest.approx(2000**-0.5, rel=0.1)
    assert (trend_N + noise_N).std() / 2000**0.5 > 0.3


FAMILIES = {
    "autoregressive": CAUSAL,
    "autoregressive and dense": CAUSAL | DENSE,
    "first layer dense": {"model.dense_layers": [0], "model.dense_width": 32},
    "bias balanced": {"model.router.kind": "bias_balanced", "model.router.scores": "sigmoid"},
    "varied lengths": {"data.variable_length_share": 0.5, "data.variable_length_min": 4},
    "shifted, weighed by context": {"model.shifted": True, "objective.weighting": "cart"},
    "blocks": {"model.block_length": 8},
    "blocks that rise and fall": {
        "model.block_length": 4, "objective.block_schedule": "wsd", "objective.block_warmup": 0.5,
        "objective.block_decay": 0.25,
    },
    "exact counts": {"objective.exact_mask_count": True, "objective.timesteps": "antithetic"},
}  # fmt: skip


@pytest.mark.parametrize("settings", FAMILIES.values(), ids=FAMILIES)
def test_every_family_trains(tmp_path, settings: dict) -> None:
    record = train(build(QUICK, settings), tmp_path)
    assert record.status == "complete", record.reason
    assert record.metrics["val/nelbo"] < record.validation["val/nelbo"][0]
    dense = settings.get("model.num_experts") == 0
    assert ("load/max_vio" in record.metrics) == (not dense)
    autoregressive = settings.get("objective.kind") == "autoregressive"
    assert (ratio_metric(5) in record.metrics) == (not autoregressive)


def test_a_shifted_networks_nelbo_is_of_the_state_before_each_token() -> None:
    config = quick(model__shifted=True)
    module, batch = MaskedDiffusion(config), MaskedTextModule(config).train_dataloader().batch(0)
    with torch.no_grad():
        hidden = module.denoiser.hidden(module.objective.input(batch), batch.router_timestep_B)
        logits_BLV = module.denoiser.logits(hidden.states_BLD)
        found_B = module.predict(batch).nelbo_B
    for b, found in enumerate(found_B.tolist()):
        places = batch.masking.masked_BL[b].nonzero()[:, 0].tolist()
        losses = [-logits_BLV[b, max(i - 1, 0)].log_softmax(-1)[batch.tokens_BL[b, i]].item() for i in places]
        assert found == pytest.approx(batch.masking.weight_B[b].item() * sum(losses) / 32, rel=1e-4)


def test_the_weights_of_cart_train_and_the_nelbo_stays_the_bound() -> None:
    config = quick(objective__weighting="cart", objective__load_balancing_weight=0.0, objective__z_loss_weight=0.0)
    batch = MaskedTextModule(config).train_dataloader().batch(0)
    cart, plain = (MaskedDiffusion(each) for each in (config, quick()))
    out = cart.training_step(batch, 0)
    assert out["nelbo"].item() == plain.training_step(batch, 0)["nelbo"].item()
    cross_entropy_BL = torch.zeros(8, 32)
    cross_entropy_BL[batch.masking.masked_BL] = cart.predict(batch).cross_entropy_M
    weight_BL = context_weights(batch.masking.masked_BL, 0.1)
    expected = (weight_BL * cross_entropy_BL.detach()).sum().item() / (8 * 32)
    assert out["loss"].item() == pytest.approx(expected, rel=1e-5)
    assert torch.equal(cart.validation_step(batch, 0)["nelbo_B"], plain.validation_step(batch, 0)["nelbo_B"])
    with pytest.raises(UserError, match="objective.weighting=cart"):
        quick(objective__weighting="cart", objective__kind="autoregressive", model__causal=True)


def test_blocks_are_validated_in_the_networks_own_length_and_their_clean_tokens_counted_in_training_alone() -> None:
    config = build(QUICK, FAMILIES["blocks that rise and fall"])
    module, data = MaskedDiffusion(config), MaskedTextModule(config)
    batches = data.train_dataloader()
    lengths = [batches.batch(step).block_length for step in range(12)]
    assert lengths == [1, 1, 2, 4, 8, 16, 32, 32, 32, 16, 8, 4]
    whole, blocks = (batches.batch(step) for step in (8, 11))
    tokens = [len(module.predict(batch).routings[0].routing.experts_NK) for batch in (whole, blocks)]
    assert tokens == [8 * 32, 2 * 8 * 32]
    batch = next(iter(data.val_dataloader()))
    out = module.validation_step(batch, 0)
    assert out["counts_LE"].sum(1).tolist() == [8 * 32 * 2] * 2 and out["top1_SN"].shape == (2, 8 * 32)
    with torch.no_grad():
        own_B = module.predict(batch._replace(block_length=4)).nelbo_B
    torch.testing.assert_close(out["nelbo_B"], own_B)


def test_an_autoregressive_model_sees_only_what_came_before() -> None:
    config = build(QUICK, FAMILIES["autoregressive"])
    module, batch = MaskedDiffusion(config), MaskedTextModule(config).train_dataloader().batch(0)
    inputs_BL = module.objective.input(batch)
    assert (inputs_BL[:, 0] == config.model.eos_id).all() and torch.equal(inputs_BL[:, 1:], batch.tokens_BL[:, :-1])
    logits, _ = module.denoiser(inputs_BL)
    nll = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch.tokens_BL.flatten())
    assert module.predict(batch).nelbo_B.mean().item() == pytest.approx(nll.item(), rel=1e-5)


def test_the_bias_of_a_balanced_router_moves_while_it_trains(tmp_path) -> None:
    train(build(QUICK, FAMILIES["bias balanced"]), tmp_path)
    bias_E = load_file(tmp_path / "model.safetensors")["layers.0.moe.router.bias_E"]
    assert bias_E.any() and bias_E.abs().max() <= 12 * 1e-3 + 1e-6


def test_tokens_count_what_was_trained_on(tmp_path) -> None:
    config = build(QUICK, FAMILIES["varied lengths"])
    record = train(config, tmp_path)
    batches = MaskedTextModule(config).train_dataloader()
    assert record.curve["tokens"][-1] == 8 * sum(batches.length(step) for step in range(12))


@pytest.mark.slow
def test_compiled_layers_compute_the_same(tmp_path) -> None:
    configs = [quick(trainer__compile=value, trainer__validate_every=0) for value in (False, True)]
    eager, compiled = (train(config, tmp_path / str(config.trainer.compile)) for config in configs)
    assert compiled.status == "complete", compiled.reason
    assert compiled.curve["train/nelbo"] == pytest.approx(eager.curve["train/nelbo"], rel=1e-4)


def test_training_goes_on_from_given_weights(tmp_path) -> None:
    first = train(quick(trainer__steps=30), tmp_path / "a")
    weights = str(tmp_path / "a" / "model.safetensors")
    config = quick(trainer__initial_weights=weights, trainer__steps=1, optimizer__learning_rate=1e-9)
    second = train(config, tmp_path / "b")
    assert second.metrics["val/nelbo"] == pytest.approx(first.metrics["val/nelbo"], rel=1e-5)


def test_initial_weights_of_another_shape_are_refused(tmp_path) -> None:
    train(quick(), tmp_path / "a")
    weights = tmp_path / "a" / "model.safetensors"
    with pytest.raises(UserError, match=r"layers.0.moe.experts.down_EDW is \(4, 32, 16\) there and \(4, 32, 20\)"):
        check(quick(trainer__initial_weights=str(weights), model__expert_width=20))
    weights.write_bytes(weights.read_bytes()[:1000])
    for path in (weights, tmp_path / "none"):
        with pytest.raises(UserError, match="can't be read as safetensors"):
            check(quick(trainer__initial_weights=str(path)))


def fit_small(kind: type[torch.optim.AdamW], steps: int, state: dict | None = None) -> tuple[torch.nn.Module, dict]:
    """A network after so many steps of an optimizer that may go on from a state, and its state."""
    torch.manual_seed(1)
    network = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.GELU(), torch.nn.Linear(7, 3))
    groups = [{"params": [p], "weight_decay": 0.1 * (p.ndim > 1)} for p in network.parameters()]
    optimizer = kind(groups, lr=0.01, betas=(0.9, 0.95), fused=True)
    if state is not None:
        optimizer.load_state_dict(state)
    for _ in range(steps):
        network(torch.randn(4, 5)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return network, optimizer.state_dict()


def test_the_optimizer_takes_the_very_steps_of_torchs_and_goes_on_from_its_state() -> None:
    reference, state = fit_small(torch.optim.AdamW, 6)
    ours, own = fit_small(AdamW, 6)
    for one, other in zip(reference.parameters(), ours.parameters(), strict=True):
        assert torch.equal(one, other) and other.grad is None and other.requires_grad
    assert own["param_groups"] == state["param_groups"]
    further, _ = fit_small(AdamW, 3, state)
    expected, _ = fit_small(torch.optim.AdamW, 3, own)
    for one, other in zip(expected.parameters(), further.parameters(), strict=True):
        assert torch.equal(one, other)
