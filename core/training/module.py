"""Lightning module of a run: the network, its objective and its optimizer."""

import copy
import inspect
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from core.config.run import RunConfig, learning_rate_factor
from core.diffusion.batch import Batch
from core.diffusion.losses import total_loss
from core.diffusion.objective import objective_of
from core.diffusion.prediction import Prediction, predict
from core.model.balance import Counted, expert_counts, load_balancing_loss, over_ranks, router_z_loss
from core.model.transformer import Denoiser, LayerRouting, initialise
from core.runtime.lightning_import import lightning
from core.runtime.ranks import Ranks
from core.training.communication import clip_exactly
from core.training.telemetry import observe


class AdamW(torch.optim.AdamW):
    """torch's AdamW for eager training: its methods don't import torch._dynamo (1.6 CPU seconds) to keep out of its way."""

    add_param_group: Any = inspect.unwrap(torch.optim.AdamW.add_param_group)
    state_dict: Any = inspect.unwrap(torch.optim.AdamW.state_dict)
    load_state_dict: Any = inspect.unwrap(torch.optim.AdamW.load_state_dict)
    zero_grad: Any = inspect.unwrap(torch.optim.AdamW.zero_grad)
    step: Any = torch.no_grad()(inspect.unwrap(torch.optim.AdamW.step))


class MaskedDiffusion(lightning.LightningModule):
    """A denoiser and how it learns: mask, predict, weigh, step. Every objective learns by the same steps."""

    def __init__(self, config: RunConfig, ranks: Ranks = Ranks()) -> None:  # noqa: B008  (frozen)
        super().__init__()
        self.config, self.objective = config, objective_of(config)
        self.denoiser = Denoiser(config.model)
        self.denoiser.recompute_layers = config.trainer.activation_checkpointing
        if config.trainer.strategy == "deepspeed" and config.model.num_experts:
            from core.model.parallel import spread_experts  # DeepSpeed, which one device doesn't need

            spread_experts(self.denoiser, ranks)
        initialise(self.denoiser, config.seed)
        keeps = config.objective.traits.reference
        self.reference = copy.deepcopy(self.denoiser).requires_grad_(False) if keeps else None
        self.gradient_norms_P = torch.zeros(0)
        self._routings: list[LayerRouting] = []
        self._counts: list[Tensor] = []
        if config.trainer.compile:
            for layer in self.denoiser.layers:  # the head is left out: its number of rows changes with every batch
                layer.compile()

    def keep_reference(self) -> None:
        """Let the weights as they are be those that preferences are compared with."""
        if self.reference is not None:
            self.reference.load_state_dict(self.denoiser.state_dict())

    def training_step(self, batch: Batch, batch_index: int) -> dict[str, Tensor]:
        """One step's losses: "loss" trains; "nelbo", "load_balancing" and "z_loss" (means over layers) are reported."""
        objective, predicted = self.config.objective, self.predict(batch)
        self._routings, sums_L = predicted.routings, predicted.sums_L
        learned, nelbo = self.objective.losses(predicted, batch, partial(self._ask_reference, batch))
        load_balancing, z_loss = auxiliary_losses(self._routings, self.device, batch.real_tokens)
        weights = (objective.load_balancing_weight, objective.z_loss_weight)
        loss = total_loss(learned, load_balancing, z_loss, weights=weights)
        reported = {"nelbo": nelbo, "load_balancing": load_balancing, "z_loss": z_loss, "sums_L": sums_L}
        return {"loss": loss} | {name: value.detach() for name, value in reported.items()}

    def _ask_reference(self, batch: Batch) -> Prediction:
        """Predict with the initial network, under the same timesteps and masks."""
        assert self.reference is not None
        with torch.no_grad():
            return predict(self.reference, self.objective.input(batch), batch)

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_index: int) -> None:
        """Let routers that are balanced by bias move it, after the optimizer's step."""
        counts = [routing.counts_E for routing in self._routings]
        if self._counts:
            counts = [one + other for one, other in zip(self._counts, counts, strict=True)]
        self._counts, self._routings = counts, []
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
        outputs = self.objective.validation(outputs, predicted, batch, partial(self._ask_reference, batch))
        if routings:
            outputs["counts_LE"] = torch.stack([layer.counts_E for layer in routings])
            outputs |= {"load_balancing": load_balancing, "z_loss": z_loss, **observe(routings, batch.masking)}
        return outputs

    def predict(self, batch: Batch) -> Prediction:
        """Predict what is masked, and only that."""
        return predict(self.denoiser, self.objective.input(batch), batch)

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


def noisy_only(layer: LayerRouting, length: int) -> LayerRouting:
    """A layer's routing without that of the clean tokens that block diffusion has beside the `length` noisy ones."""
    routing = layer.routing
    names = ("logits_NE", "probs_NE", "gates_NK", "experts_NK")
    parts = {name: getattr(routing, name).unflatten(0, (-1, 2 * length))[:, :length].flatten(0, 1) for name in names}
    own = routing._replace(**parts)
    return LayerRouting(own, over_ranks(expert_counts(own.experts_NK, own.probs_NE.shape[1])))


def auxiliary_losses(
    routings: Sequence[LayerRouting], device: torch.device, tokens: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Load-balancing loss and router z-loss, each computed per layer and averaged over layers.

    Per layer, because loads pooled over layers can cancel; averaged, so that a weight means the same at any depth
    (OLMoE, arXiv 2409.02060). Both are 0 for a dense model. tokens: divisor of sums over packed tokens without filling.
    """
    if not routings:
        return torch.zeros((), device=device), torch.zeros((), device=device)
    of = None if tokens is None else Counted(routings[0].routing.real_N, tokens)
    load_balancing = [load_balancing_loss(layer.routing.probs_NE, layer.counts_E, of) for layer in routings]
    z_loss = [router_z_loss(layer.routing.logits_NE, of) for layer in routings]
    return torch.stack(load_balancing).mean(), torch.stack(z_loss).mean()
