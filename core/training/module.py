"""The LightningModule: it delegates."""

import math
from collections.abc import Sequence
from typing import Any

import lightning
import torch
from torch import Tensor

from core.config import RunConfig
from core.data.module import Batch
from core.diffusion.objectives import masked_diffusion_loss, token_cross_entropy, total_loss
from core.model.balance import load_balancing_loss, router_z_loss
from core.model.transformer import Denoiser, LayerRouting, initialise


class MaskedDiffusion(lightning.LightningModule):
    """A denoiser and how it learns: mask, predict, weigh, step."""

    def __init__(self, config: RunConfig) -> None:
        super().__init__()
        self.config = config
        self.denoiser = Denoiser(config.model)
        initialise(self.denoiser, config.seed)

    def training_step(self, batch: Batch, batch_index: int) -> dict[str, Tensor]:
        """One step's losses: "loss" trains; "nelbo", "load_balancing" and "z_loss" (means over layers) are reported."""
        objective = self.config.objective
        nelbo_B, routings = self.nelbo(batch)
        nelbo = nelbo_B.mean()
        load_balancing, z_loss = auxiliary_losses(routings)
        weights = (objective.load_balancing_weight, objective.z_loss_weight)
        loss = total_loss(nelbo, load_balancing, z_loss, weights=weights)
        return {
            "loss": loss,
            "nelbo": nelbo.detach(),
            "load_balancing": load_balancing.detach(),
            "z_loss": z_loss.detach(),
        }

    def validation_step(self, batch: Batch, batch_index: int) -> dict[str, Tensor]:
        """Per-sequence NELBO (B,) in nats per token, auxiliary losses, and expert counts (layers, E) of one batch."""
        nelbo_B, routings = self.nelbo(batch)
        load_balancing, z_loss = auxiliary_losses(routings)
        counts_LE = torch.stack([layer.counts_E for layer in routings])
        return {"nelbo_B": nelbo_B, "load_balancing": load_balancing, "z_loss": z_loss, "counts_LE": counts_LE}

    def nelbo(self, batch: Batch) -> tuple[Tensor, list[LayerRouting]]:
        """Each sequence's NELBO estimate in nats per token, (B,), and the routing of every layer."""
        tokens_BL, (masked_BL, _, weight_B) = batch
        mask_id = self.config.model.mask_id
        assert mask_id is not None  # RunConfig refuses a masked objective without one
        noisy_BL = tokens_BL.masked_fill(masked_BL, mask_id)
        logits_MV, routings = self.denoiser(noisy_BL, masked_BL)
        cross_entropy_M = token_cross_entropy(logits_MV, tokens_BL[masked_BL])
        return masked_diffusion_loss(cross_entropy_M, weight_B, masked_BL), routings

    def configure_optimizers(self) -> Any:
        """AdamW, decay on matrices only; linear warm-up, then a cosine, stepped every training step."""
        settings = self.config.optimizer
        matrices = [p for p in self.parameters() if p.ndim > 1]
        vectors = [p for p in self.parameters() if p.ndim <= 1]
        groups = [
            {"params": matrices, "weight_decay": settings.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(
            groups, lr=settings.learning_rate, betas=(settings.beta1, settings.beta2), fused=True
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self.learning_rate_factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clip the global gradient norm. Lightning's own way refuses fused optimizers under bf16, though bf16 scales
        no gradients."""
        if gradient_clip_val:
            torch.nn.utils.clip_grad_norm_(self.parameters(), gradient_clip_val)

    def learning_rate_factor(self, step: int) -> float:
        """Share of the peak learning rate at a step: up over the warm-up, then down a cosine to the final fraction."""
        settings, steps = self.config.optimizer, self.config.trainer.steps
        if step < settings.warmup_steps:
            return (step + 1) / settings.warmup_steps
        progress = min(1.0, (step - settings.warmup_steps) / max(1, steps - settings.warmup_steps))
        cosine = (1 + math.cos(math.pi * progress)) / 2
        return settings.final_lr_fraction + (1 - settings.final_lr_fraction) * cosine


def auxiliary_losses(routings: Sequence[LayerRouting]) -> tuple[Tensor, Tensor]:
    """Load-balancing loss and router z-loss, each computed per layer and averaged over layers.

    Per layer, because loads pooled over layers can cancel; averaged, so that a weight means the same at any depth
    (OLMoE, arXiv 2409.02060). Both are 0 for a dense model.
    """
    if not routings:
        return torch.zeros(()), torch.zeros(())
    load_balancing = [load_balancing_loss(layer.routing.probs_NE, layer.counts_E) for layer in routings]
    z_loss = [router_z_loss(layer.routing.logits_NE) for layer in routings]
    return torch.stack(load_balancing).mean(), torch.stack(z_loss).mean()
