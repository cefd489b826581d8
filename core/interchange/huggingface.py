"""Weights to and from Hugging Face folders: safetensors, sharded, a few tensors in memory at a time beside the model."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from core.config import ModelConfig
from core.errors import UserError
from core.interchange.layouts import Piece, config_from_hf, config_to_hf, layout_for, layout_of, pieces
from core.model.shapes import Shape, shapes
from core.model.transformer import Denoiser
from core.records import write_atomically

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
SHARD_BYTES = 2 * 2**30


def load(folder: Path, dtype: torch.dtype | None = None) -> Denoiser:
    """The network of a Hugging Face folder, in `dtype` (None: as stored).

    Beside the model itself one parameter's tensors are in memory at a time. Raises UserError for a folder that isn't
    one, an unknown architecture or option, pickled weights, and missing, superfluous, misshapen or truncated tensors.
    """
    said = read_config(folder)
    model, layout = config_from_hf(said), layout_of(said)
    where = _files(folder)
    with torch.device("meta"):
        denoiser = Denoiser(model)
    wanted = list(pieces(model, list(denoiser.state_dict()), layout))
    _check_names(folder, {piece.theirs for piece in wanted}, set(where), tied=model.tied_embeddings)
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
    layout = layout_for(model, layout)
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.glob("*.safetensors")):
        raise UserError(f"{folder} holds weights already: name an empty folder")
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


def read_config(folder: Path) -> dict[str, Any]:
    """A folder's config.json, or a UserError that says what is wrong with it."""
    path = folder / "config.json"
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{folder} has no config.json: name the folder of a Hugging Face model") from None
    except (OSError, ValueError) as error:
        raise UserError(f"can't read {path}: {error}") from None
    if not isinstance(said, dict):
        raise UserError(f"{path} must hold an object of config keys")
    return said


def _files(folder: Path) -> dict[str, Path]:
    """The file that holds each tensor. Only names from the folder itself are followed."""
    if (folder / INDEX).is_file():
        try:
            names = set(json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values())
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"can't read {folder / INDEX}: {error}") from None
    else:
        names = {SINGLE}
        if not (folder / SINGLE).is_file():
            pickled = any(folder.glob("*.bin")) or any(folder.glob("*.pt*"))
            hint = "; its weights are pickled, which can run code: convert them to safetensors" if pickled else ""
            raise UserError(f"{folder} has neither {SINGLE} nor {INDEX}{hint}")
    where: dict[str, Path] = {}
    for name in sorted(names):
        path = folder / str(name)
        if path.name != name or not path.is_file():
            raise UserError(f"{folder / INDEX} names '{name}', which is no file of that folder")
        with _opened(path) as shard:
            where |= dict.fromkeys(shard.keys(), path)
    return where


def _opened(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is truncated or no safetensors file: {error}") from None


def _check_names(folder: Path, wanted: set[str], found: set[str], *, tied: bool) -> None:
    ignored = {name for name in found if name.endswith("rotary_emb.inv_freq")} | ({"lm_head.weight"} if tied else set())
    missing, superfluous = sorted(wanted - found), sorted(found - wanted - ignored)
    if missing:
        raise UserError(f"{folder} lacks {len(missing)} tensors that config.json asks for, such as {missing[0]}")
    if superfluous:
        raise UserError(f"{folder} has {len(superfluous)} tensors that config.json has no place for: {superfluous[0]}")


def _stored_dtype(path: Path, name: str) -> torch.dtype:
    with _opened(path) as shard:
        return shard.get_tensor(name).dtype


def _grouped(wanted: Sequence[Piece]) -> list[tuple[str, list[Piece]]]:
    groups: dict[str, list[Piece]] = {}
    for piece in wanted:
        groups.setdefault(piece.ours, []).append(piece)
    return list(groups.items())


def _fill(parameter: Tensor, group: Sequence[Piece], where: dict[str, Path]) -> None:
    """Copy a parameter's pieces into it. Files are closed in between, so that what was read of them can be let go."""
    for path in {where[piece.theirs] for piece in group}:
        with _opened(path) as shard:
            for piece in (piece for piece in group if where[piece.theirs] == path):
                target = parameter if piece.expert is None else parameter[piece.expert]
                source = shard.get_tensor(piece.theirs)
                if source.shape != target.shape:
                    raise UserError(
                        f"{path}: {piece.theirs} has shape {tuple(source.shape)}, but config.json makes it "
                        f"{tuple(target.shape)}"
                    )
                target.copy_(source)


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
