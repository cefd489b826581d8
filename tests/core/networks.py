"""Networks of random weights."""

from core.config.model import ModelConfig
from core.model.transformer import Denoiser, initialise


def network_of(config: ModelConfig, seed: int = 0) -> Denoiser:
    network = Denoiser(config)
    initialise(network, seed)
    return network.eval()
