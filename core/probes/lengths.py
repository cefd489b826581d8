"""NELBO of a trained model at other sequence lengths than the training length, longer ones included."""

import numpy as np
import torch

from core.config.run import RunConfig
from core.data.module import MaskedTextModule
from core.diffusion.objective import objective_of
from core.diffusion.prediction import predict
from core.model.transformer import Denoiser
from core.probes.checks import at_length
from core.runtime.lightning_import import lightning


@torch.inference_mode()
def nelbo_at(config: RunConfig, denoiser: Denoiser, length: int, sequences: int) -> np.ndarray:
    """NELBO of held-out sequences of a length, in nats per token: (N,) float64.

    Sequences and masks are drawn as in validation, so that all arms of a seed meet the same ones at a length. Raises
    UserError where so many sequences of the length are not held out.
    """
    found = []
    device = denoiser.embed.weight.device
    read = at_length(config, length, sequences)
    for batch in MaskedTextModule(read).val_dataloader():
        there = lightning.fabric.utilities.move_data_to_device(batch, device)
        found.append(predict(denoiser, objective_of(read).input(there), there).nelbo_B.double().cpu().numpy())
    return np.concatenate(found)
