"""Early checks of what a run can't be trained with: without the libraries that train, which take seconds to import."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from core.config.loading import build, text
from core.config.loading import load as load_config
from core.config.model import ModelConfig
from core.config.run import RunConfig, get_field, known_keys, to_dict
from core.config.stages import LAST, UNNAMED, Stage
from core.data.corpora import load as load_corpus
from core.data.corpus import Corpus
from core.errors import UserError
from core.model.shapes import Shape, shapes
from core.records.metrics import METRICS, part_metric
from core.records.provenance import STAGE
from core.runtime.paths import expanded
from core.training.checkpoint_files import WEIGHTS
from core.training.deepspeed_config import check_devices, has_cuda


def check(config: RunConfig, devices: int = 1, *, here: bool = True) -> None:
    """Refuse, before anything is trained, what would fail later.

    here: on this machine, so that what it lacks is refused too. Raises UserError for a corpus that is unknown, missing or too
    small, a vocabulary that its tokens exceed, an accelerator that this machine lacks, a number of devices that the run can't
    be spread over, or initial weights that are absent, damaged or of another shape.
    """
    check_devices(config, devices, here=here)
    corpus = load_corpus(config.data)
    check_vocabulary(config, corpus)
    if config.trainer.keep_best is not None:
        check_metric(config, corpus, config.trainer.keep_best, "trainer.keep_best")
    if config.trainer.initial_weights and not config.trainer.initial_weights.startswith(STAGE):
        check_weights(config.model, expanded(config.trainer.initial_weights))
    if here and config.trainer.accelerator == "cuda" and not has_cuda():
        raise UserError("trainer.accelerator=cuda, but torch sees no CUDA device here: use auto or cpu")


def check_vocabulary(config: RunConfig, corpus: Corpus) -> None:
    """Refuse a corpus whose tokens the model has no rows for, uses as its mask, or doesn't mark responses of."""
    model, vocabulary, name = config.model, corpus.vocabulary, config.data.corpus
    if model.vocab_size < vocabulary.size:
        raise UserError(
            f"model.vocab_size={model.vocab_size} is too small for the {vocabulary.size} token ids of data.corpus={name}: "
            f"use {vocabulary.size} or more"
        )
    traits = config.objective.traits
    if (
        not traits.causal
        and model.mask_id is not None
        and model.mask_id < vocabulary.size
        and model.mask_id != vocabulary.mask
    ):
        right = vocabulary.size if vocabulary.mask is None else vocabulary.mask
        raise UserError(f"model.mask_id={model.mask_id} is a token of data.corpus={name}: use model.mask_id={right}")
    if traits.responses and not traits.pairs and corpus.train_maskable_T is None:
        raise UserError(
            f"objective.kind={traits.name} needs responses, and data.corpus={name} marks none: use instructions:FILE.jsonl"
        )
    if traits.pairs != (corpus.rows > 1):
        raise UserError(
            f"objective.kind={traits.name} needs pairs of responses, and data.corpus={name} has none: use "
            "preferences:FILE.jsonl"
            if corpus.rows == 1
            else f"half of data.corpus={name} is rejected responses: it is for objective.kind=vrpo, not {traits.name}"
        )


def check_metric(config: RunConfig, corpus: Corpus, metric: str, named: str) -> None:
    """Refuse to choose weights by what the run doesn't measure at every validation, or by what is better where it is more.

    named: what an error calls the field.
    """
    has = {"always": True, "text": corpus.bytes_per_token is not None, "source": corpus.source is not None}
    has |= {"experts": config.model.num_experts > 0}
    known = [each.name for each in METRICS.entries() if each.goal == "min" and has.get(each.measured, False)]
    known += [part_metric(part.name) for part in corpus.parts]
    if metric not in known:
        raise UserError(
            f"{named}={metric} is nothing that this run minimises at every validation: use one of {', '.join(known)}"
        )


def check_weights(model: ModelConfig, path: str, named: str = "trainer.initial_weights=") -> None:
    """Refuse a weights file that doesn't hold exactly the model's tensors. Only the file's header is read.

    named: what an error calls the file, before its path.
    """
    wanted = shapes(model)
    try:
        with safe_open(path, framework="np") as weights:
            found = {name: tuple(weights.get_slice(name).get_shape()) for name in weights.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UserError(f"{named}{path} can't be read as safetensors: {error}") from None
    if unlike := _unlike(found, wanted):
        name, there, wants = unlike
        raise UserError(f"{named}{path} doesn't fit the model: {name} is {there} there and {wants} in the config")


def find_run(folder: Path, settings: Mapping[str, Any] | None = None) -> RunConfig:
    """The config, with settings over it, of a run's folder or an imported model's whose weights can be read.

    Raises UserError for a folder without a config or weights, and for weights of another shape.
    """
    for name, left in (
        ("config.yaml", ""),
        (WEIGHTS, " (every finished run leaves its weights, but for want of room)"),
    ):
        if not (folder / name).is_file():
            raise UserError(f"{folder} has no {name}: name the folder of a finished run or an imported model{left}")
    config = load_config(folder / "config.yaml", settings)
    check_weights(config.model, str(folder / WEIGHTS), "")
    return config


def check_same_shape(first: ModelConfig, second: ModelConfig) -> None:
    """Refuse a first stage whose weights don't fit the model that starts from them."""
    if unlike := _unlike(shapes(first), shapes(second)):
        name, there, here = unlike
        raise UserError(f"its first stage has another shape: {name} is {there} there and {here} here")


def _unlike(theirs: Mapping[str, Shape], ours: Mapping[str, Shape]) -> tuple[str, Shape | str, Shape | str] | None:
    """The first tensor by name that two models don't have alike, with both its shapes; None where all are."""
    for name in sorted(ours.keys() | theirs.keys()):
        if ours.get(name) != theirs.get(name):
            return name, theirs.get(name, "absent"), ours.get(name, "absent")
    return None


def check_stages(stages: Sequence[Stage], devices: int = 1, *, here: bool = True) -> None:
    """Refuse, before any stage is trained, what would fail in one of them; here: on this machine.

    Raises UserError, with the stage named, for what `check` refuses, a metric to select by that the stage doesn't measure, a
    corpus that is still to be named, and weights of other shapes than the stage's before.
    """
    for before, stage in zip((None, *stages), stages, strict=False):
        try:
            if stage.config.data.corpus.startswith(UNNAMED):
                raise UserError("data.corpus is still to be named: set the corpus of this stage")
            if stage.select != LAST:
                check_metric(stage.config, load_corpus(stage.config.data), stage.select, "select")
            check(stage.config, devices, here=here)
            if before is not None:
                _check_shapes(before, stage)
        except UserError as error:
            raise UserError(f"stage {stage.name}: {error}") from None


def _check_shapes(before: Stage, stage: Stage) -> None:
    old, new = before.config, stage.config
    if shapes(old.model) == shapes(new.model):
        return
    changed = [key for key in known_keys(ModelConfig, "model.") if get_field(old, key) != get_field(new, key)]
    guilty = [key for key in changed if _reshapes(new, key, get_field(old, key))] or changed
    values = ", ".join(f"{key}={_said(get_field(new, key))} (not {_said(get_field(old, key))})" for key in guilty)
    raise UserError(f"{values} changes the weights' shapes, and stage {before.name}'s weights are what it starts from")


def _reshapes(config: RunConfig, key: str, former: Any) -> bool:
    """True where a key with its former value would give other shapes, or nothing that holds."""
    value = list(former) if isinstance(former, tuple) else former
    try:
        return shapes(build(to_dict(config), {key: value}).model) != shapes(config.model)
    except UserError:
        return True


def _said(value: Any) -> str:
    return str(list(value)) if isinstance(value, tuple) else text(value)
