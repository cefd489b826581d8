"""Weights to and from Hugging Face folders: safetensors, sharded, a few tensors in memory at a time beside the model."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from core.config import ModelConfig
from core.interchange.folders import INDEX, SINGLE, check_empty, find, opened
from core.interchange.layouts import Piece, config_to_hf, pieces
from core.model.shapes import Shape, shapes
from core.model.transformer import Denoiser
from core.records import write_atomically

SHARD_BYTES = 2 * 2**30


def load(folder: Path, dtype: torch.dtype | None = None) -> Denoiser:
    """The network of a Hugging Face folder, in `dtype` (None: as stored).

    Beside the model itself one parameter's tensors are in memory at a time. Raises UserError for a folder that isn't
    one, an unknown architecture or option, pickled weights, and missing, superfluous, misshapen or truncated tensors.
    """
    model, wanted, where = find(folder)
    with torch.device("meta"):
        denoiser = Denoiser(model)
    stored = _stored_dtype(where[wanted[0].theirs], wanted[0].theirs)
    denoiser = denoiser.to(dtype or stored).to_empty(device="cpu")
    state = denoiser.state_dict()
    for ours, group in _grouped(wanted):
        _fill(state[ours], group, where)
    return denoiser.eval()


def save(
    model: ModelConfig,
    tensor: Callable[[str], Tensor],
    folder: Path,
    *,
    layout: str | None = None,
    dtype: torch.dtype | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write a Hugging Face folder: config.json, safetensors shards and their index.

    tensor: this project's state-dict name to its tensor (`denoiser.state_dict().__getitem__`, or a reader of a file).
    One shard is in memory at a time. Raises UserError when no layout can say the model, and when weights are there.
    """
    layout = check_empty(folder, model, layout)
    folder.mkdir(parents=True, exist_ok=True)
    wanted = shapes(model)
    dtype = dtype or tensor(next(iter(wanted))).dtype
    shards = _shards(list(pieces(model, list(wanted), layout)), wanted, dtype, shard_bytes)
    index: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        name = SINGLE if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        _write_shard(folder / name, shard, tensor, dtype)
        index |= {piece.theirs: name for piece in shard}
    total = sum(map(math.prod, wanted.values())) * dtype.itemsize
    if len(shards) > 1:
        content = {"metadata": {"total_size": total}, "weight_map": index}
        write_atomically(folder / INDEX, json.dumps(content, indent=2) + "\n")
    said = config_to_hf(model, layout) | {"torch_dtype": str(dtype).removeprefix("torch.")}
    write_atomically(folder / "config.json", json.dumps(said, indent=2) + "\n")


def _stored_dtype(path: Path, name: str) -> torch.dtype:
    with opened(path, "pt") as shard:
        return shard.get_tensor(name).dtype


def _grouped(wanted: Sequence[Piece]) -> list[tuple[str, list[Piece]]]:
    groups: dict[str, list[Piece]] = {}
    for piece in wanted:
        groups.setdefault(piece.ours, []).append(piece)
    return list(groups.items())


def _fill(parameter: Tensor, group: Sequence[Piece], where: dict[str, Path]) -> None:
    """Copy a parameter's pieces into it. Files are closed in between, so that what was read of them can be let go."""
    for path in {where[piece.theirs] for piece in group}:
        with opened(path, "pt") as shard:
            for piece in (piece for piece in group if where[piece.theirs] == path):
                target = parameter if piece.expert is None else parameter[piece.expert]
                target.copy_(shard.get_tensor(piece.theirs))


def _shards(wanted: list[Piece], whole: Mapping[str, Shape], dtype: torch.dtype, limit: int) -> list[list[Piece]]:
    shards: list[list[Piece]] = [[]]
    filled = 0
    for piece in wanted:
        shape = whole[piece.ours] if piece.expert is None else whole[piece.ours][1:]
        size = math.prod(shape) * dtype.itemsize
        if shards[-1] and filled + size > limit:
            shards.append([])
            filled = 0
        shards[-1].append(piece)
        filled += size
    return shards


def _write_shard(path: Path, shard: Sequence[Piece], tensor: Callable[[str], Tensor], dtype: torch.dtype) -> None:
    content = {}
    for ours, group in _grouped(shard):
        source = tensor(ours).detach()
        for piece in group:
            part = source if piece.expert is None else source[piece.expert]
            content[piece.theirs] = part.to(dtype, copy=True).contiguous()
    temporary = path.with_suffix(".tmp")
    save_file(content, temporary, metadata={"format": "pt"})
    temporary.replace(path)
