"""Hugging Face folders as they are found: what can't be read of one is refused before torch is imported."""

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open

from core.config.model import ModelConfig
from core.errors import UserError
from core.interchange.layouts import FILES, LAYOUTS, Ids, Piece, config_from_hf, layout_for, layout_of, pieces
from core.model.shapes import shapes

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"


TOKENIZER, TEMPLATE = "tokenizer.json", "chat_template.jinja"
BESIDE = ("tokenizer_config.json", "special_tokens_map.json", TEMPLATE)
COUNTS = ("num_hidden_layers", "n_layers", "num_experts")  # keys of which each takes a tensor at least
LARGEST_JSON = 2**26
TYPES = ("F64", "F32", "F16", "BF16")


class Found(NamedTuple):
    """A folder's model, the tensors that make it up, and the file that holds each (and others that are stored)."""

    model: ModelConfig
    wanted: list[Piece]
    where: dict[str, Path]


def find(folder: Path, ids: Ids = FILES) -> Found:
    """A folder's model, by its config.json and its files' headers alone. ids: tokens instead of the file's.

    Raises UserError for a folder that isn't one, an unknown architecture or option, pickled weights, and missing,
    superfluous, misshapen or truncated tensors.
    """
    said, where = read_config(folder), _files(folder)
    for key in COUNTS:
        _check_count(folder, f"{key}={said.get(key)}", said.get(key), len(where))
    model = config_from_hf(said, ids)
    experts = 3 * model.experts * len(model.sparse_layers)
    _check_count(folder, f"{model.experts} experts in {len(model.sparse_layers)} layers", experts, len(where))
    wanted = list(pieces(model, list(shapes(model)), layout_of(said)))
    tied = {LAYOUTS[layout_of(said)].rename("head.weight")} if model.tied_embeddings else set()
    _check_names(folder, {piece.theirs for piece in wanted}, set(where), tied)
    _check_shapes(model, wanted, where)
    return Found(model, wanted, where)


def _check_count(folder: Path, what: str, count: Any, tensors: int) -> None:
    """Refuse a config.json that asks for more than its files can hold, before so much is listed."""
    if isinstance(count, int) and count > tensors:
        raise UserError(f"{folder}: config.json asks for {what}, and the files hold {tensors} tensors")


def check_weights(path: Path, model: ModelConfig) -> None:
    """Refuse a run's weights that aren't those of its config, by the file's header."""
    with opened(path, "np") as weights:
        found = {name: tuple(weights.get_slice(name).get_shape()) for name in weights.keys()}  # noqa: SIM118
    for name, shape in shapes(model).items():
        if found.pop(name, None) != shape:
            raise UserError(f"{path} doesn't fit the config.yaml beside it, which wants {name} of shape {shape}")
    if found:
        raise UserError(f"{path} doesn't fit the config.yaml beside it, which has no {next(iter(found))}")


def check_empty(folder: Path, model: ModelConfig, layout: str | None = None) -> str:
    """Refuse to write a model where weights are, and one that no layout can say; returns the layout."""
    layout = layout_for(model, layout)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is no folder: name an empty one, or one that isn't there")
    there = next((path for pattern in ("*.safetensors", INDEX, "config.json") for path in folder.glob(pattern)), None)
    if there is not None:
        raise UserError(f"{folder} holds a model already ({there.name}): name an empty folder")
    return layout


def copy_tokenizer(source: Path, target: Path) -> Path | None:
    """Copy a model's tokenizer and what says how it is used; returns the tokenizer.json copied, None where there is none."""
    if not (source / TOKENIZER).is_file():
        return None
    target.mkdir(parents=True, exist_ok=True)
    for name in (TOKENIZER, *BESIDE):
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
    return target / TOKENIZER


def read_config(folder: Path) -> dict[str, Any]:
    """A folder's config.json, or a UserError that says what is wrong with it."""
    path = folder / "config.json"
    if not os.path.isfile(path):
        raise UserError(f"{folder} has no config.json: name the folder of a Hugging Face model")
    said = _read_json(path)
    if not isinstance(said, dict):
        raise UserError(f"{path} must hold an object of config keys")
    return said


def _read_json(path: Path) -> Any:
    try:
        if path.stat().st_size > LARGEST_JSON:
            raise UserError(f"can't read {path}: it is larger than {LARGEST_JSON >> 20} MiB")
        return json.loads(path.read_text(encoding="utf-8"))
    except UserError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"can't read {path}: {error}") from None


def _files(folder: Path) -> dict[str, Path]:
    """The file that holds each tensor. Only names from the folder itself are followed."""
    if os.path.isfile(folder / SINGLE):  # as in transformers, which looks at no index beside it
        names = {SINGLE}
    elif os.path.isfile(folder / INDEX):
        try:
            names = {str(name) for name in _read_json(folder / INDEX)["weight_map"].values()}
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(f"can't read {folder / INDEX}: {error}") from None
    else:
        pickled = any(folder.glob("*.bin")) or any(folder.glob("*.pt*"))
        hint = "; its weights are pickled, which can run code: convert them to safetensors" if pickled else ""
        raise UserError(f"{folder} has neither {SINGLE} nor {INDEX}{hint}")
    where: dict[str, Path] = {}
    for name in sorted(names):
        path = folder / name
        if path.name != name or not os.path.isfile(path):
            raise UserError(f"{folder / INDEX} names '{name}', which is no file of that folder")
        with opened(path, "np") as shard:
            for tensor in shard.keys():  # noqa: SIM118 (it is no dictionary)
                if tensor in where:
                    raise UserError(f"{folder}: {tensor} is in {where[tensor].name} and in {name}: keep one of them")
                where[tensor] = path
    return where


def opened(path: Path, framework: str) -> Any:
    """A safetensors file, to read tensors of a framework ("pt", "np") from. Raises UserError for one that isn't whole."""
    try:
        return safe_open(path, framework=framework)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is truncated or no safetensors file: {error}") from None


def _check_names(folder: Path, wanted: set[str], found: set[str], tied: set[str]) -> None:
    ignored = {name for name in found if name.endswith("rotary_emb.inv_freq")} | tied
    missing, superfluous = sorted(wanted - found), sorted(found - wanted - ignored)
    if missing:
        raise UserError(f"{folder} lacks {len(missing)} tensors that config.json asks for, such as {missing[0]}")
    if superfluous:
        raise UserError(f"{folder} has {len(superfluous)} tensors that config.json has no place for: {superfluous[0]}")


def _check_shapes(model: ModelConfig, wanted: Sequence[Piece], where: dict[str, Path]) -> None:
    ours = shapes(model)
    for path in sorted(set(where.values())):
        with opened(path, "np") as shard:
            for piece in (piece for piece in wanted if where[piece.theirs] == path):
                right = ours[piece.ours] if piece.expert is None else ours[piece.ours][1:]
                found = tuple(shard.get_slice(piece.theirs).get_shape())
                if found != right:
                    raise UserError(f"{path}: {piece.theirs} has shape {found}, but config.json makes it {right}")
                stored = shard.get_slice(piece.theirs).get_dtype()
                if stored not in TYPES:
                    raise UserError(f"{path}: {piece.theirs} is stored as {stored}; known are {', '.join(TYPES)}")
