"""Weights to and from Hugging Face folders: safetensors, sharded, a few tensors in memory at a time beside the model."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import reduce
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from core.config.model import ModelConfig
from core.errors import UserError
from core.interchange.folders import INDEX, SINGLE, Found, check_empty, find, opened, read_config
from core.interchange.layouts import FILES, LAYOUTS, Ids, Piece, config_to_hf, layout_of, pieces
from core.model.shapes import shapes
from core.model.transformer import Denoiser
from core.records.run_record import write_atomically

SHARD_BYTES = 2 * 2**30
TORCH_TYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
ROWS = 8192  # of two matrices, compared at a time


def load(folder: Path, dtype: torch.dtype | None = None, ids: Ids = FILES) -> Denoiser:
    """The network of a Hugging Face folder, in `dtype` (None: as stored). ids: tokens instead of the file's.

    Where stored types differ, all matrices get the widest of theirs, so that nothing is rounded; routers and norms, which
    compute in fp32 anyway, keep their own. Beside the model itself one parameter's tensors are in memory at a time.
    Raises UserError for a folder that isn't one, an unknown architecture or option, pickled weights, missing,
    superfluous, misshapen or truncated tensors, and a head of its own beside tied embeddings.
    """
    found = find(folder, ids)
    _check_tied(folder, found)
    with torch.device("meta"):
        denoiser = Denoiser(found.model)
    types = stored_types(found)
    widest = reduce(torch.promote_types, (types[name] for name in types if not _keeps_type(name)))
    for name, parameter in denoiser.named_parameters():
        parameter.data = parameter.data.to(dtype or (types[name] if _keeps_type(name) else widest))
    denoiser = denoiser.to_empty(device="cpu")
    state = denoiser.state_dict()
    for ours, group in _grouped(found.wanted):
        _fill(state[ours], group, found.where)
    return denoiser.eval()


def stored_types(found: Found) -> dict[str, torch.dtype]:
    """The type that each weight is stored in, by its name here; of an expert's matrices the widest."""
    types: dict[str, torch.dtype] = {}
    for path in sorted(set(found.where.values())):
        with opened(path, "pt") as shard:
            for piece in (piece for piece in found.wanted if found.where[piece.theirs] == path):
                stored = TORCH_TYPES[shard.get_slice(piece.theirs).get_dtype()]
                types[piece.ours] = torch.promote_types(types.get(piece.ours, stored), stored)
    return types


def _keeps_type(name: str) -> bool:
    """True if a weight may be of another type than what it meets."""
    return name.endswith("norm.weight") or ".moe.router." in name


def _check_tied(folder: Path, found: Found) -> None:
    """Refuse a head that differs from the embeddings it is said to be tied to: transformers would keep it."""
    embed, head = (LAYOUTS[layout_of(read_config(folder))].rename(name) for name in ("embed.weight", "head.weight"))
    if not found.model.tied_embeddings or head not in found.where:
        return
    with opened(found.where[embed], "pt") as one, opened(found.where[head], "pt") as other:
        rows, others = one.get_slice(embed), other.get_slice(head)
        same = rows.get_shape() == others.get_shape() and rows.get_dtype() == others.get_dtype()
        for first in range(0, found.model.vocab_size, ROWS):
            same = same and torch.equal(rows[first : first + ROWS], others[first : first + ROWS])
    if not same:
        raise UserError(
            f"{folder}: config.json ties the embeddings, and {head} is another matrix than {embed}: remove it, or untie them"
        )


def save(
    model: ModelConfig,
    tensor: Callable[[str], Tensor],
    folder: Path,
    *,
    layout: str | None = None,
    dtype: torch.dtype | None = None,
    shard_bytes: int = SHARD_BYTES,
    load_balancing_weight: float = 0.0,
) -> None:
    """Write a Hugging Face folder: config.json, safetensors shards and their index.

    tensor: this project's state-dict name to its tensor (`denoiser.state_dict().__getitem__`, or a reader of a file). dtype:
    of all weights; None keeps each one's own. load_balancing_weight: what the model was trained with, for the class's own
    loss. One shard is in memory at a time. Raises UserError when no layout can say the model, and when weights are there.
    """
    layout = check_empty(folder, model, layout)
    folder.mkdir(parents=True, exist_ok=True)
    wanted = list(pieces(model, list(shapes(model)), layout))
    names: list[list[str]] = []
    types: set[torch.dtype] = set()
    total = 0
    for content in _shards(wanted, tensor, dtype, shard_bytes):
        write_tensors(content, _unnamed(folder, len(names)))
        names.append(list(content))
        total += sum(part.nbytes for part in content.values())
        types |= {part.dtype for part in content.values()}
        content.clear()  # before the next is read
    index: dict[str, str] = {}
    for number, held in enumerate(names):
        name = SINGLE if len(names) == 1 else f"model-{number + 1:05d}-of-{len(names):05d}.safetensors"
        _unnamed(folder, number).replace(folder / name)
        index |= dict.fromkeys(held, name)
    if len(names) > 1:
        listing = {"metadata": {"total_size": total}, "weight_map": index}
        write_atomically(folder / INDEX, json.dumps(listing, indent=2) + "\n")
    said = config_to_hf(model, layout, load_balancing_weight=load_balancing_weight)
    # transformers casts all weights to one type: the widest, in which none loses digits.
    said["torch_dtype"] = str(reduce(torch.promote_types, types)).removeprefix("torch.")
    write_atomically(folder / "config.json", json.dumps(said, indent=2) + "\n")


def write_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """A safetensors file, whole or not at all, which whoever reads the folder may read. Raises UserError where it fails."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        save_file(dict(tensors), partial, metadata={"format": "pt"})
        partial.chmod(0o644)  # the library makes it the owner's alone
        partial.replace(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} can't be written: {error}") from None
    finally:
        partial.unlink(missing_ok=True)


def _unnamed(folder: Path, number: int) -> Path:
    return folder / f"shard-{number}.tmp"  # until it is known how many there are


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


def _shards(
    wanted: Sequence[Piece], tensor: Callable[[str], Tensor], dtype: torch.dtype | None, limit: int
) -> Iterator[dict[str, Tensor]]:
    """The tensors of each shard by their names in it, none larger than `limit` bytes unless it is a single one."""
    shard: dict[str, Tensor] = {}
    filled = 0
    for ours, group in _grouped(wanted):
        source = tensor(ours).detach()
        for piece in group:
            part = source if piece.expert is None else source[piece.expert]
            part = part.to(dtype or part.dtype, copy=True).contiguous()
            if shard and filled + part.nbytes > limit:
                yield shard
                shard, filled = {}, 0
            shard[piece.theirs] = part
            filled += part.nbytes
    yield shard
