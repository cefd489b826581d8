"""The LightningModule: it delegates."""

import copy
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from core.config.run import RunConfig
from core.data.module import Batch
from core.diffusion.objectives import (
    context_weights,
    nelbo_per_token,
    preference_loss,
    preference_margins,
    token_cross_entropy,
    total_loss,
    weighted_per_token,
)
from core.model.balance import Counted, expert_counts, load_balancing_loss, over_ranks, router_z_loss
from core.model.transformer import Denoiser, LayerRouting, initialise
from core.runtime.lightning_import import lightning
from core.runtime.ranks import Ranks
from core.training.adamw import AdamW
from core.training.schedule import learning_rate_factor
from core.training.strategy import clip_exactly
from core.training.telemetry import observe


class Prediction(NamedTuple):
    """What the network said of a batch: each sequence's NELBO (B,), in nats per token, or each conversation's (C,) where they
    are packed; each sparse layer's routing; the sum of each layer's output (layers + 1,), the embedding's first, which is
    finite where the output is; and the cross-entropy of each predicted token (M,), in the order of the batch's index_M."""

    nelbo_B: Tensor
    routings: list[LayerRouting]
    sums_L: Tensor
    cross_entropy_M: Tensor


class MaskedDiffusion(lightning.LightningModule):
    """A denoiser and how it learns: mask, predict, weigh, step. An autoregressive model learns by the same steps."""

    def __init__(self, config: RunConfig, ranks: Ranks = Ranks()) -> None:  # noqa: B008  (frozen)
        super().__init__()
        self.config = config
        self.denoiser = Denoiser(config.model)
        self.denoiser.recompute_layers = config.trainer.activation_checkpointing
        _spread(self.denoiser, config, ranks)
        initialise(self.denoiser, config.seed)
        self.reference = copy.deepcopy(self.denoiser).requires_grad_(False) if self._prefers else None
        self.gradient_norms_P = torch.zeros(0)
        self._routings: list[LayerRouting] = []
        self._counts: list[Tensor] = []
        if config.trainer.compile:
            for layer in self.denoiser.layers:  # the head is left out: its number of rows changes with every batch
                layer.compile()

    @property
    def _prefers(self) -> bool:
        return self.config.objective.kind == "vrpo"

    def keep_reference(self) -> None:
        """Let the weights as they are be those that preferences are compared with."""
        if self.reference is not None:
            self.reference.load_state_dict(self.denoiser.state_dict())

    def training_step(self, batch: Batch, batch_index: int) -> dict[str, Tensor]:
        """One step's losses: "loss" trains; "nelbo", "load_balancing" and "z_loss" (means over layers) are reported."""
        objective, predicted = self.config.objective, self.predict(batch)
        self._routings, sums_L, nelbo = predicted.routings, predicted.sums_L, batch.mean(predicted.nelbo_B)
        if self._prefers:
            nelbo = self._of_chosen(predicted.nelbo_B).mean()
            learned = preference_loss(self._margins(predicted, batch))
        else:
            learned = nelbo if objective.weighting == "bound" else self._by_context(predicted, batch)
        load_balancing, z_loss = auxiliary_losses(self._routings, self.device, batch.real_tokens)
        weights = (objective.load_balancing_weight, objective.z_loss_weight)
        loss = total_loss(learned, load_balancing, z_loss, weights=weights)
        reported = {"nelbo": nelbo, "load_balancing": load_balancing, "z_loss": z_loss, "sums_L": sums_L}
        return {"loss": loss} | {name: value.detach() for name, value in reported.items()}

    def _margins(self, predicted: Prediction, batch: Batch) -> Tensor:
        """Preference margins of a batch's pairs (P,), the reference asked under the same timesteps and masks."""
        assert self.reference is not None
        with torch.no_grad():
            reference_B = predict(self.reference, self.input(batch), batch).nelbo_B
        nats = (values_B * batch.masking.length_B for values_B in (predicted.nelbo_B, reference_B))
        own_P2, reference_P2 = (each.unflatten(0, (-1, 2, self.config.objective.draws)).mean(2) for each in nats)
        return preference_margins(own_P2, reference_P2, self.config.objective.beta)

    def _of_chosen(self, values_B: Tensor) -> Tensor:
        """Those of the chosen responses' rows."""
        return values_B.unflatten(0, (-1, 2, self.config.objective.draws))[:, 0].flatten()

    def _by_context(self, predicted: Prediction, batch: Batch) -> Tensor:
        """Dream's loss, per token: masked tokens weighed by what is visible around them."""
        weight_BL = context_weights(batch.masking.masked_BL, self.config.objective.cart_p)
        sequence_M = batch.index_M.div(batch.tokens_BL.shape[1], rounding_mode="floor")
        weight_M = weight_BL.flatten().index_select(0, batch.index_M)
        return weighted_per_token(predicted.cross_entropy_M, sequence_M, weight_M, batch.masking.length_B).mean()

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_index: int) -> None:
        """Let routers that are balanced by bias move it, after the optimizer's step."""
        counts = [routing.counts_E for routing in self._routings]
        self._counts = (
            [one + other for one, other in zip(self._counts, counts, strict=True)] if self._counts else counts
        )
        self._routings = []
        if (batch_index + 1) % self.config.trainer.accumulate == 0:
            for moe, counts_E in zip(self.denoiser.mixtures(), self._counts, strict=True):
                moe.router.rebalance(counts_E)
            self._counts = []

    def validation_step(self, batch: Batch, batch_index: int) -> dict[str, Tensor]:
        """Per-sequence NELBO and mask ratio (B,), auxiliary losses, expert counts (sparse layers, E) of one batch, and what
        core.training.telemetry observes."""
        predicted = self.predict(batch)
        nelbo_B, routings, *_ = predicted
        own_length, length = self.config.model.block_length, batch.tokens_BL.shape[1]
        if own_length is not None and own_length < length:
            routings = [noisy_only(layer, length) for layer in routings]
        load_balancing, z_loss = auxiliary_losses(routings, self.device, batch.real_tokens)
        outputs = {"nelbo_B": nelbo_B, "ratio_B": batch.masking.timestep_B}
        if batch.domain_B is not None:
            outputs["domain_B"] = batch.domain_B
        if batch.packed is not None:  # a conversation's ratio and domain are its sequence's
            row_C = batch.packed.row_C
            outputs |= {name: outputs[name][row_C] for name in ("ratio_B", "domain_B") if name in outputs}
            outputs["row_C"] = row_C
        if self._prefers:
            outputs = {name: self._of_chosen(values_B) for name, values_B in outputs.items()}
            outputs["margin_P"] = self._margins(predicted, batch)
        if routings:
            outputs["counts_LE"] = torch.stack([layer.counts_E for layer in routings])
            outputs |= {"load_balancing": load_balancing, "z_loss": z_loss, **observe(routings, batch.masking)}
        return outputs

    def predict(self, batch: Batch) -> Prediction:
        """Predict what is masked, and only that."""
        return predict(self.denoiser, self.input(batch), batch)

    def input(self, batch: Batch) -> Tensor:
        """What the network sees of a batch."""
        return seen_by(self.config, batch)

    def configure_optimizers(self) -> Any:
        """AdamW, decay on matrices only; linear warm-up, then the schedule, stepped every training step."""
        settings = self.config.optimizer
        learning = [p for p in self.parameters() if p.requires_grad]
        matrices, vectors = [p for p in learning if p.ndim > 1], [p for p in learning if p.ndim <= 1]
        groups = [
            {"params": matrices, "weight_decay": settings.weight_decay, "name": "matrices"},
            {"params": vectors, "weight_decay": 0.0, "name": "vectors"},
        ]
        if self.config.trainer.strategy == "deepspeed" and self.config.model.num_experts:
            from deepspeed.moe.utils import split_params_into_different_moe_groups_for_optimizer as apart

            groups = [group for group in apart(groups) if group["params"]]
        optimizer = AdamW(groups, lr=settings.learning_rate, betas=(settings.beta1, settings.beta2), fused=True)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, partial(learning_rate_factor, self.config))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clip the global gradient norm, and keep each parameter's norm for the record.

        Lightning's own way refuses fused optimizers under bf16, though bf16 scales no gradients. Under DeepSpeed only the
        global norm is known: gradients are spread, and from stage 1 on the engine clips them.
        """
        if self.config.trainer.strategy == "deepspeed":
            if self.config.deepspeed.stage == 0:
                self.gradient_norms_P = clip_exactly(self, gradient_clip_val or 0.0).reshape(1)
            return
        parameters = [p for p in self.parameters() if p.grad is not None]
        self.gradient_norms_P = torch.stack(torch._foreach_norm([p.grad for p in parameters]))  # type: ignore[misc]
        if gradient_clip_val:
            total = torch.linalg.vector_norm(self.gradient_norms_P)
            torch.nn.utils.clip_grads_with_norm_(parameters, gradient_clip_val, total)


def seen_by(config: RunConfig, batch: Batch) -> Tensor:
    """What a network sees: masked tokens replaced by the mask; or, autoregressive, the tokens before each.

    An autoregressive sequence starts with eos, so that all of its tokens are predicted, as under masks.
    """
    model = config.model
    if config.objective.kind == "autoregressive":
        assert model.eos_id is not None  # RunConfig refuses the objective without it, as it does masks without one
        return torch.nn.functional.pad(batch.tokens_BL[:, :-1], (1, 0), value=model.eos_id)
    assert model.mask_id is not None
    return batch.tokens_BL.masked_fill(batch.masking.masked_BL, model.mask_id)


def predict(denoiser: Denoiser, input_BL: Tensor, batch: Batch) -> Prediction:
    """Predict a batch's masked tokens, and only those, from what the network sees of it.

    With blocks, each is predicted given the clean tokens of those before it.
    """
    (tokens_BL, masking, index_M, told_B), packed = batch[:4], batch.packed
    clean_BL = None if denoiser.config.block_length is None else tokens_BL
    hidden = denoiser.hidden(
        input_BL,
        told_B,
        masking.ratio_B,
        segments_BL=None if packed is None else packed.segments_BL,
        clean_BL=clean_BL,
        block_length=batch.block_length,
        real_BL=None if packed is None else packed.real_BL,
    )
    length = tokens_BL.shape[1]
    from_M = denoiser.source(index_M, length)
    logits_MV = denoiser.logits(hidden.states_BLD.flatten(0, 1).index_select(0, from_M))
    cross_entropy_M = token_cross_entropy(logits_MV, tokens_BL.flatten().index_select(0, index_M))
    if packed is not None:
        weight_C = masking.weight_B[packed.row_C]
        nelbo_C = nelbo_per_token(cross_entropy_M, packed.conversation_M, weight_C, packed.length_C)
        return Prediction(nelbo_C, hidden.routings, hidden.sums_L, cross_entropy_M)
    sequence_M = index_M.div(length, rounding_mode="floor")
    nelbo_B = nelbo_per_token(cross_entropy_M, sequence_M, masking.weight_B, masking.length_B)
    return Prediction(nelbo_B, hidden.routings, hidden.sums_L, cross_entropy_M)


def noisy_only(layer: LayerRouting, length: int) -> LayerRouting:
    """A layer's routing without that of the clean tokens that block diffusion has beside the `length` noisy ones."""
    routing = layer.routing
    names = ("logits_NE", "probs_NE", "gates_NK", "experts_NK")
    parts = {name: getattr(routing, name).unflatten(0, (-1, 2 * length))[:, :length].flatten(0, 1) for name in names}
    own = routing._replace(**parts)
    return LayerRouting(own, over_ranks(expert_counts(own.experts_NK, own.probs_NE.shape[1])))


def _spread(denoiser: Denoiser, config: RunConfig, ranks: Ranks) -> None:
    if config.trainer.strategy == "deepspeed" and config.model.num_experts:
        from core.model.parallel import spread_experts

        spread_experts(denoiser, ranks)


def auxiliary_losses(
    routings: Sequence[LayerRouting], device: torch.device, tokens: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Load-balancing loss and router z-loss, each computed per layer and averaged over layers.

    Per layer, because loads pooled over layers can cancel; averaged, so that a weight means the same at any depth
    (OLMoE, arXiv 2409.02060). Both are 0 for a dense model. tokens: of packed sequences, what sums over
    their tokens but filling are divided by.
    """
    if not routings:
        return torch.zeros((), device=device), torch.zeros((), device=device)
    of = None if tokens is None else Counted(routings[0].routing.real_N, tokens)
    load_balancing = [load_balancing_loss(layer.routing.probs_NE, layer.counts_E, of) for layer in routings]
    z_loss = [router_z_loss(layer.routing.logits_NE, of) for layer in routings]
    return torch.stack(load_balancing).mean(), torch.stack(z_loss).mean()
