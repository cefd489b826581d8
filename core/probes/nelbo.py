"""NELBO of held-out text: at other lengths than the training length, and of minimal pairs.

A pair is a right response and one that is wrong by a symbol. No decoding is involved, so that what a model knows is told from
what a sampler makes of it. Shapes: N pairs, K draws of masks.
"""

from dataclasses import dataclass

import numpy as np
import torch

from core.config.run import RunConfig
from core.data.batches import router_timestep
from core.data.module import MaskedTextModule
from core.data.tasks import first_held_out, spoiled, task_of
from core.data.tokenizers import load_tokenizer
from core.diffusion.batch import Batch
from core.diffusion.objective import Objective, objective_of
from core.diffusion.prediction import predict
from core.errors import UserError
from core.model.transformer import Denoiser
from core.probes.checks import at_length
from core.runtime.lightning_import import lightning
from core.runtime.random_streams import numpy_stream, torch_stream


@torch.inference_mode()
def nelbo_at(config: RunConfig, denoiser: Denoiser, length: int, sequences: int) -> np.ndarray:
    """NELBO of held-out sequences of a length, in nats per token: (N,) float64.

    Sequences and masks are drawn as in validation, so that all arms of a seed meet the same ones at a length. Raises
    UserError where so many sequences of the length are not held out.
    """
    read = at_length(config, length, sequences)
    nelbos = [_nelbo(denoiser, objective_of(read), batch) for batch in MaskedTextModule(read).val_dataloader()]
    return torch.cat(nelbos).double().numpy()


def _nelbo(denoiser: Denoiser, objective: Objective, batch: Batch) -> torch.Tensor:
    """Each sequence's NELBO, in nats per token, on the CPU. Returns (B,)."""
    batch = lightning.fabric.utilities.move_data_to_device(batch, denoiser.embed.weight.device)
    return predict(denoiser, objective.input(batch), batch).nelbo_B.cpu()


@dataclass(frozen=True)
class PairResult:
    """margin_N: NELBO of the wrong response less that of the right one, in nats, under the same masks; se_N: its standard
    error over draws, taken for independent though they are stratified (0 for a causal model, whose likelihood is exact)."""

    margin_N: np.ndarray
    se_N: np.ndarray

    @property
    def preferred(self) -> float:
        """The share of pairs whose right response is the likelier one; a tie is half of one."""
        return float(((self.margin_N > 0) + 0.5 * (self.margin_N == 0)).mean())


def minimal_pairs(config: RunConfig, denoiser: Denoiser, count: int, *, draws: int = 32, seed: int = 0) -> PairResult:
    """Compare held-out right responses with ones that are wrong by one symbol.

    Both meet the same masks, whose numbers are stratified over the response (LLaDA, arXiv 2502.09992, Eq. 6), so that what
    they share cancels. Responses are filled up with eos, as in training. Raises UserError for a run that was not trained on a
    task, and for too many pairs.
    """
    name = task_of(config)
    held = first_held_out(name, count, "pairs")
    if draws < 1:
        raise UserError(f"draws must be at least 1, not {draws}")
    causal = config.objective.traits.causal
    margins, errors = [], []
    for index, (prompt, right) in enumerate(held):
        wrong = spoiled(name, prompt, right, numpy_stream(seed, "pairs", index))
        right_K, wrong_K = (
            _nats(config, denoiser, prompt, response, 1 if causal else draws, torch_stream(seed, "pairs", index))
            for response in (right, wrong)  # with a new generator each: both meet the same masks
        )
        margin_K = (wrong_K - right_K).double()
        margins.append(float(margin_K.mean()))
        errors.append(float(margin_K.std()) / len(margin_K) ** 0.5 if len(margin_K) > 1 else 0.0)
    return PairResult(np.array(margins), np.array(errors))


@torch.inference_mode()
def _nats(
    config: RunConfig, denoiser: Denoiser, prompt: str, response: str, draws: int, generator: torch.Generator
) -> torch.Tensor:
    """The NELBO of a response and its filling under K draws of masks, in nats. Returns (K,)."""
    tokenizer = load_tokenizer(config.data.tokenizer)
    eos = tokenizer.vocabulary.eos
    assert eos is not None  # a corpus of text needs one
    before, after = (tokenizer.encode("a task", text.encode(), special=False).tolist() for text in (prompt, response))
    tokens = [*before, *after, *[eos] * (config.data.sequence_length - len(before) - len(after))]
    tokens_KL = torch.tensor(tokens).expand(draws, -1)
    maskable_KL = (torch.arange(len(tokens)) >= len(before)).expand(draws, -1)
    objective = objective_of(config)
    masking = objective.mask_validation(draws, len(tokens), generator, maskable_KL)
    router_timestep_K = router_timestep(masking, config.model.router.sees, generator)
    return _nelbo(denoiser, objective, Batch.of(tokens_KL, masking, router_timestep_K)) * masking.length_B
