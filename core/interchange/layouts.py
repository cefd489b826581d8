"""Mapping between Hugging Face checkpoints and this project's configs: config.json keys and weight names, both ways."""

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from core.config.model import ModelConfig
from core.config.run import get_field
from core.errors import UserError
from core.interchange.family import COMMON, Keys, Layout, refuse
from core.interchange.llada import LLADA
from core.interchange.llada_moe import LLADA_MOE
from core.interchange.shipped import LLAMA, OLMOE, QWEN2

LAYOUTS: dict[str, Layout] = {
    "llada_moe": LLADA_MOE, "llada": LLADA, "olmoe": OLMOE, "qwen2": QWEN2, "llama": LLAMA,
}  # fmt: skip
CAUSAL = "is_causal"  # transformers' key, of classes that are causal as shipped
BIDIRECTIONAL = "bidirectional"  # what it was called in folders that were written before 2026-11-30


class Piece(NamedTuple):
    """One tensor of a checkpoint: `theirs` is `ours`, or expert number `expert` of it."""

    ours: str
    expert: int | None
    theirs: str


def layout_for(model: ModelConfig, name: str | None = None) -> str:
    """The layout that can say the model. Raises UserError that names the field none can (or the named one can't)."""
    if name is not None and name not in LAYOUTS:
        raise UserError(f"unknown layout '{name}': use one of {', '.join(LAYOUTS)}")
    misfits = {key: _misfits(model, layout) for key, layout in LAYOUTS.items() if name in (None, key)}
    fitting = [key for key, fields in misfits.items() if not fields]
    if fitting:
        # A class that says the direction itself comes before one that needs a key for it.
        return min(fitting, key=lambda key: LAYOUTS[key].causal_as_shipped != model.causal)
    nearest = min(misfits, key=lambda key: len(misfits[key]))
    raise UserError(f"no Hugging Face class can say this model; the nearest, {nearest}, needs {misfits[nearest][0]}")


def _misfits(model: ModelConfig, layout: Layout) -> list[str]:
    found = [
        f"model.{key}={value}, not {get_field(model, key)}"
        for key, value in (COMMON | dict(layout.fixed)).items()
        if get_field(model, key) != value
    ]
    if "num_experts" not in layout.fixed and not model.num_experts:
        found.append("a mixture of experts (model.num_experts >= 1)")
    if model.num_heads * model.head_dim != model.hidden_size and not layout.says_head_dim:
        found.append(f"model.head_dim={model.hidden_size / model.num_heads:g}: hidden_size over num_heads")
    if model.causal and not layout.causal_as_shipped:
        found.append("model.causal=False, not True")
    return found


def config_to_hf(model: ModelConfig, name: str | None = None, *, load_balancing_weight: float = 0.0) -> dict[str, Any]:
    """The model as a config.json of the layout (the fitting one when left out), every key of its class said.

    load_balancing_weight: what the model is trained with here; `auxiliary_loss` says what the class makes of it.
    Raises UserError as `layout_for` does.
    """
    layout = LAYOUTS[layout_for(model, name)]
    said: dict[str, Any] = {"architectures": [layout.architecture], "model_type": layout.model_types[0]}
    if layout.code:
        said["auto_map"] = dict(layout.code)
    said |= layout.write(model)
    if layout.has_auxiliary_loss:
        said["router_aux_loss_coef"] = load_balancing_weight / model.experts_per_token
    if layout.causal_as_shipped:
        said[CAUSAL] = model.causal
    tokens = {"eos_token_id": model.eos_id, "pad_token_id": model.pad_id, "mask_token_id": model.mask_id}
    return said | tokens


def auxiliary_loss(model: ModelConfig, weight: float) -> str:
    """Sentence on how a class's own load-balancing loss relates to the weight that a model is trained with here; "" where
    it has none."""
    layout = LAYOUTS[layout_for(model)]
    if not layout.has_auxiliary_loss:
        return ""
    k = model.experts_per_token
    said = (
        f"router_aux_loss_coef={weight / k:g} is objective.load_balancing_weight={weight:g} over the {k} experts of a token: "
        f"the loss function of {layout.architecture} is {k} times the one here, and of the tokens of all layers together, "
        "where here it is of each layer, averaged. The class has no z-loss."
    )
    return (
        said if layout.code is None else f"{said} Its layers hand out no router logits, so that it trains with neither."
    )


def load_balancing_weight(said: Mapping[str, Any]) -> float | None:
    """A class's own loss weight as objective.load_balancing_weight; None where the class has none."""
    layout = LAYOUTS[layout_of(said)]
    if not layout.has_auxiliary_loss:
        return None
    keys = Keys(said, layout.defaults)
    return keys.number("router_aux_loss_coef") * keys.whole("num_experts_per_tok")


class Ids(NamedTuple):
    """Tokens by hand, instead of the file's; None: the file's."""

    mask: int | None = None
    eos: int | None = None


FILES = Ids()


def config_from_hf(said: Mapping[str, Any], ids: Ids = FILES) -> ModelConfig:
    """The model that a config.json describes.

    Raises UserError for an unknown architecture, a missing key and an option that isn't built here, naming the key.
    """
    layout = LAYOUTS[layout_of(said)]
    keys = Keys(said, layout.defaults)
    refuse(keys, {**layout.refused, "model_type": (*layout.model_types, None)})
    if keys.flag(CAUSAL) and keys.flag(BIDIRECTIONAL):
        raise UserError(
            f"config.json: {CAUSAL}=True and {BIDIRECTIONAL}=True contradict each other: keep the right one"
        )
    fields = layout.read(keys)
    one_way = keys.get(CAUSAL) is None or keys.flag(CAUSAL)
    causal = layout.causal_as_shipped and one_way and not keys.flag(BIDIRECTIONAL)
    tokens = {
        "mask_id": keys.token("mask_token_id") if ids.mask is None else ids.mask,
        "eos_id": keys.token("eos_token_id") if ids.eos is None else ids.eos,
        "pad_id": keys.token("pad_token_id"),
    }
    fixed = {key: value for key, value in layout.fixed.items() if "." not in key}
    # As shipped, LLaDA-MoE's config class defaults the mask to its eos; the released weights mask with 156895.
    if tokens["mask_id"] is not None and tokens["mask_id"] in (tokens["eos_id"], tokens["pad_id"]):
        where = "config.json: mask_token_id" if ids.mask is None else "--mask-id"
        raise UserError(
            f"{where}={tokens['mask_id']} is also eos or pad: give the mask's own id, at import by --mask-id"
        )
    return ModelConfig(**(fixed | {"causal": causal} | tokens | fields))


def ignored(said: Mapping[str, Any]) -> list[str]:
    """Keys of a config.json that its class reads otherwise, or not at all, a sentence each."""
    layout = LAYOUTS[layout_of(said)]
    notes = [
        f"config.json: {key}={said[key]} is ignored, as {layout.architecture} ignores it"
        for key, same in layout.ignored.items()
        if key in said and said[key] not in same
    ]
    if layout.causal_as_shipped and said.get(BIDIRECTIONAL) and CAUSAL not in said:
        notes.append(f"config.json: {BIDIRECTIONAL} is followed; transformers knows it as {CAUSAL}=false")
    return notes


def layout_of(said: Mapping[str, Any]) -> str:
    """The layout of a config.json, by its architecture. Raises UserError for one that isn't known."""
    named = said.get("architectures")
    architecture = str(named[0]) if isinstance(named, list) and named else ""
    for name, layout in LAYOUTS.items():
        if architecture.lower() in (layout.architecture.lower(), layout.architecture.lower().removesuffix("lm")):
            return name
    known = ", ".join(layout.architecture for layout in LAYOUTS.values())
    raise UserError(f"config.json: architecture '{architecture}' is unknown; known are {known}")


def pieces(model: ModelConfig, names: list[str], layout: str) -> Iterator[Piece]:
    """Every tensor of the checkpoint for this project's state-dict names, in their order."""
    rename = LAYOUTS[layout].rename
    for ours in names:
        match = re.fullmatch(r"(layers\.\d+\.)moe\.experts\.(gate|up|down)_E[DW]{2}", ours)
        if match is None:
            yield Piece(ours, None, rename(ours))
            continue
        for expert in range(model.experts):
            yield Piece(ours, expert, f"model.{match[1]}mlp.experts.{expert}.{match[2]}_proj.weight")
