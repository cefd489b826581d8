"""Cost of decoding: the sampler with and without caches, one token after the other, and LLaDA's loop, in turns.

All contestants are the same network: token after token it is given a causal mask, which leaves its weights and its active
parameters as they are. Shapes: B sequences, P prompt tokens.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from core.diffusion.autoregressive import decode_autoregressive
from core.diffusion.predictors import ComparedPredictor, NetworkPredictor, needs_whole_sequence
from core.diffusion.reference_llada import generate
from core.diffusion.sampler import collect, decode, sample
from core.diffusion.sampling import CACHING, Caching, Fixed, Sampled, Sampling, check_sampling
from core.model.transformer import Denoiser
from core.probes.checks import Cell


@dataclass(frozen=True)
class Cost:
    """Measured cost of one method in a cell.

    seconds_R: of each round. nfe: network calls of a sequence, on average. tokens_per_call: what each fixed (TPF).
    peak_bytes: of activations and caches at once, beyond the weights.
    """

    contestant: str
    cell: Cell
    seconds_R: list[float]
    nfe: float
    tokens_per_call: float
    peak_bytes: int

    @property
    def tokens(self) -> int:
        return self.cell.length * self.cell.batch


@dataclass(frozen=True)
class CacheError:
    """Change of predictions and tokens by a cache in a cell.

    distance: mean total variation distance of predictions with and without it, along its own way; changed: the share of
    predictions whose most likely token is another; agreement: the share of tokens that the sampler without it decodes too.
    """

    cache: str
    cell: Cell
    distance: float
    changed: float
    agreement: float


Work = Callable[[], Iterator[Fixed]]


def contestants(denoiser: Denoiser, prompts: Sequence[Sequence[int]], cell: Cell, threshold: float) -> dict[str, Work]:
    """The methods that are timed in a cell, by name; LLaDA's loop takes one sequence at a time.

    Caches and causal masks are left out where routers need the whole sequence.
    """
    mask_id, device = check_sampling(denoiser.config, prompts, cell.settings), denoiser.embed.weight.device
    sure, aligned = replace(cell.settings, steps=None, threshold=threshold), denoiser.config.block_length

    def decoded(settings: Sampling, cache: Caching) -> Work:
        return lambda: decode(
            NetworkPredictor(denoiser, cache), prompts, settings, mask_id, device=device, aligned=aligned
        )

    works: dict[str, Work] = {"none": decoded(cell.settings, "none")}
    works[f"none, threshold {threshold:g}"] = decoded(sure, "none")
    if not needs_whole_sequence(denoiser.config):
        works |= {cache: decoded(cell.settings, cache) for cache in CACHING[1:]}
        works[f"dual, threshold {threshold:g}"] = decoded(sure, "dual")
        causal = _causal(denoiser)
        works["autoregressive"] = lambda: decode_autoregressive(causal, prompts, cell.length)
    if aligned is None:  # its blocks begin after the prompt, and a network's own with the sequence
        works["LLaDA's loop"] = lambda: _llada(denoiser, prompts, cell, mask_id)
    return works


def _causal(denoiser: Denoiser) -> Denoiser:
    """The same weights under a causal mask."""
    eos_id = denoiser.config.eos_id or 0
    with torch.device("meta"):
        causal = Denoiser(replace(denoiser.config, causal=True, shifted=False, block_length=None, eos_id=eos_id))
    causal.load_state_dict(denoiser.state_dict(), assign=True)
    return causal.eval()


def _llada(denoiser: Denoiser, prompts: Sequence[Sequence[int]], cell: Cell, mask_id: int) -> Iterator[Fixed]:
    """LLaDA's loop as one event: it doesn't say when it fixed what, but it makes all of its calls."""
    device, settings = denoiser.embed.weight.device, cell.settings
    assert settings.steps is not None
    with torch.inference_mode():
        for prompt in prompts:
            generate(
                lambda tokens_BL: denoiser(tokens_BL)[0], torch.tensor([list(prompt)], dtype=torch.int64, device=device),
                steps=settings.steps, length=cell.length, block_length=cell.block_length, mask_id=mask_id,
            )  # fmt: skip
    return iter(())


def measure(
    denoiser: Denoiser, prompts: Sequence[Sequence[int]], cell: Cell, *, rounds: int, threshold: float
) -> list[Cost]:
    """Time every contestant of a cell, in turns, after a round of warm-up."""
    works = contestants(denoiser, prompts[: cell.batch], cell, threshold)
    seconds: dict[str, list[float]] = {name: [] for name in works}
    outcomes: dict[str, Sampled] = {}
    for number in range(rounds + 1):
        for name, work in works.items():
            _wait(denoiser)
            began = time.perf_counter()
            events = list(work())
            _wait(denoiser)
            if number:
                seconds[name].append(time.perf_counter() - began)
            outcomes[name] = collect(iter(events), prompts[: cell.batch], cell.length)
    costs = []
    for name, work in works.items():
        nfe = float(outcomes[name].nfe_B.double().mean()) or float(cell.settings.steps or 1)
        costs.append(Cost(name, cell, seconds[name], nfe, cell.length / nfe, _peak_bytes(denoiser, work)))
    return costs


def cache_errors(denoiser: Denoiser, prompts: Sequence[Sequence[int]], cell: Cell) -> list[CacheError]:
    """Measure what each cache changes in a cell."""
    mask_id, device = check_sampling(denoiser.config, prompts, cell.settings), denoiser.embed.weight.device
    prompts, found = prompts[: cell.batch], []
    aligned = denoiser.config.block_length
    exact = sample(NetworkPredictor(denoiser), prompts, cell.settings, mask_id, device=device, aligned=aligned)
    for cache in CACHING[1:] if not needs_whole_sequence(denoiser.config) else ():
        compared = ComparedPredictor(NetworkPredictor(denoiser, cache), NetworkPredictor(denoiser))
        cached = sample(compared, prompts, cell.settings, mask_id, device=device, aligned=aligned)
        decoded_BL, positions = exact.step_BL >= 0, max(1, compared.positions)
        agreement = float((cached.tokens_BL == exact.tokens_BL)[decoded_BL].double().mean())
        found.append(CacheError(cache, cell, compared.distance / positions, compared.changed / positions, agreement))
    return found


def _wait(denoiser: Denoiser) -> None:
    if denoiser.embed.weight.device.type == "cuda":
        torch.cuda.synchronize()


def _peak_bytes(denoiser: Denoiser, work: Work, calls: int = 2) -> int:
    """The most bytes that the first calls hold at once beyond the weights: the first is over all positions."""
    device = denoiser.embed.weight.device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        _some(work, calls)
        return torch.cuda.max_memory_allocated(device) - before
    with _Held(denoiser) as held:
        _some(work, calls)
    return held.peak


def _some(work: Work, calls: int) -> None:
    for _ in zip(range(calls), work(), strict=False):
        pass


class _Held(TorchDispatchMode):
    """Counts the bytes of all tensors that are alive at once, a model's own weights left out."""

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__()
        self.weights = {StorageWeakRef(value.untyped_storage()) for value in denoiser.state_dict().values()}
        self.alive: dict[StorageWeakRef, int] = {}
        self.peak = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        for value in tree_leaves(out):
            if isinstance(value, Tensor):
                storage = value.untyped_storage()
                reference = StorageWeakRef(storage)
                if reference not in self.weights:
                    self.alive[reference] = storage.nbytes()
        if len(self.alive) % 8 == 0 or sum(self.alive.values()) > self.peak:
            self.alive = {reference: size for reference, size in self.alive.items() if not reference.expired()}
        self.peak = max(self.peak, sum(self.alive.values()))
        return out
