"""Stages: one training as several runs, each of which starts from weights of the one before.

A YAML file has the settings that all share, as a config file does, and `stages:`, a list of {name, settings, select}. core.
training.staged trains them.
"""

import difflib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from core.config.loading import build, flatten, nested, read_yaml
from core.config.presets import preset
from core.config.run import RunConfig, content_hash, to_dict
from core.errors import UserError, require
from core.runtime.random_streams import numpy_stream

KEY = "stages"
LAST = "last"  # as `select`: the final weights
UNNAMED = "unnamed:"  # what starts the name of a corpus that is still to be named
FIELDS = ("name", "settings", "select")
OWN = ("trainer.initial_weights", "trainer.keep_best")  # settings that follow from the stages
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class Stage:
    """One run of a staged training.

    config: whole, but for the weights that it starts from. select: the metric at whose best its weights are handed on to
    the next stage, "val/nelbo" or another that validation minimises; or "last", the final weights.
    """

    name: str
    config: RunConfig
    select: str = "val/nelbo"

    def __post_init__(self) -> None:
        require(
            NAME.fullmatch(self.name) is not None,
            f"stage '{self.name}': a name needs letters, digits, '-', '_' and '.', as it names a folder",
        )
        kept = None if self.select == LAST else self.select
        object.__setattr__(self, "config", replace(self.config, trainer=replace(self.config.trainer, keep_best=kept)))

    @property
    def identity(self) -> str:
        """Sixteen hex digits that are equal for equal stages, wherever the weights lie that they start from."""
        config = to_dict(self.config)
        config["trainer"].pop("initial_weights")
        return content_hash({"stage": self.name, "config": config})


def is_staged(path: Path) -> bool:
    """True if a file has stages; False where there is no such file."""
    return path.is_file() and KEY in read_yaml(path)


def load_stages(path: Path, overrides: Mapping[str, Any] | None = None) -> tuple[Stage, ...]:
    """The stages of a YAML file, with `overrides` over the settings of each. Raises UserError as `make_stages` does."""
    return make_stages(read_yaml(path), overrides)


def make_stages(content: Mapping[str, Any], overrides: Mapping[str, Any] | None = None) -> tuple[Stage, ...]:
    """The stages of {"preset": NAME, "stages": [{name, settings, select}, ...], and settings that all share}.

    Each stage but the first has a seed of its own, unless it sets one: else two stages would meet a text in one order under
    one set of masks. Raises UserError for what is no stage, and settings that don't hold or follow from the stages.
    """
    shared = {key: value for key, value in content.items() if key not in (KEY, "preset")}
    base = to_dict(preset(content["preset"])) if "preset" in content else {}
    entries = content.get(KEY)
    require(isinstance(entries, list) and bool(entries), f"{KEY}: must be a list of {{name, settings, select}}")
    assert isinstance(entries, list)
    stages: list[Stage] = []
    for entry in entries:
        name = _name(entry, [stage.name for stage in stages])
        layers = [shared, entry.get("settings") or {}, overrides or {}]
        try:
            stages.append(_make(name, base, layers, entry.get("select", Stage.select), first=not stages))
        except UserError as error:
            raise UserError(f"stage {name}: {error}") from None
    return tuple(stages)


def _name(entry: Any, taken: Sequence[str]) -> str:
    require(isinstance(entry, dict) and isinstance(entry.get("name"), str), f"{KEY}: each needs a name")
    name: str = entry["name"]
    require(name not in taken, f"stage {name} is there twice: names must differ")
    for key in entry:
        near = difflib.get_close_matches(str(key), FIELDS, n=1)
        hint = f"did you mean {near[0]}?" if near else "config keys go below settings"
        require(key in FIELDS, f"stage {name}: unknown key '{key}': {hint}")
    require(isinstance(entry.get("settings") or {}, dict), f"stage {name}: settings must be config keys with values")
    require(isinstance(entry.get("select", ""), str), f"stage {name}: select must be a metric, or {LAST}")
    return name


def _make(name: str, base: Mapping[str, Any], layers: list[Mapping[str, Any]], select: str, *, first: bool) -> Stage:
    shared, own, overrides = (dict(flatten(layer)) for layer in layers)
    for key in OWN:
        initial = key == OWN[0] and first  # the training itself may start from weights
        require(
            initial or key not in own | overrides,
            f"{key} follows from the stages: leave it out, and choose by `select` what is handed on",
        )
    require(shared.get(OWN[1]) is None, f"{OWN[1]} follows from the stages: use `select`")
    merged = dict(flatten(base)) | shared | own | overrides  # here, once: a config is slow to merge into
    if first:
        return Stage(name, build(merged), select)
    config = build(merged | {OWN[0]: None})
    if "seed" not in own:
        config = replace(config, seed=int(numpy_stream(config.seed, "stage", name).integers(2**31)))
    return Stage(name, config, select)


def to_yaml(stages: Sequence[Stage]) -> str:
    """Stages as YAML that `load_stages` reads back to equal ones: what all share first, then what each has of its own."""
    flat = [dict(flatten(to_dict(stage.config))) for stage in stages]
    shared = {
        key: value
        for key, value in flat[0].items()
        if key not in (*OWN, "seed") and all(other[key] == value for other in flat[1:])
    }
    entries = []
    for stage, settings in zip(stages, flat, strict=True):
        dropped = {OWN[1]} if settings[OWN[0]] is not None else set(OWN)
        own = {key: value for key, value in settings.items() if key not in shared and key not in dropped}
        entries.append({"name": stage.name, "select": stage.select, "settings": own})
    return yaml.safe_dump({**nested(shared), KEY: entries}, sort_keys=False)


def llada_moe_stages(
    corpora: Mapping[str, str],
    *,
    sft_steps: int,
    base: RunConfig | None = None,
    share: float = 1.0,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
) -> tuple[Stage, ...]:
    """LLaDA-MoE's five stages (arXiv 2509.24389, Sec. 3), tokens as steps.

    pretrain-1: 10T tokens. pretrain-2: 10T, with mathematics and code weighted up. anneal-1: 500B at a RoPE base of 50,000,
    after 10,000 before. anneal-2: 500B at a context of 8192. sft: Eq. 5 on packed conversations. On 1 % of the steps before
    sft the length is drawn from U[8, context]. The batches of anneal-2 and sft have as many tokens as those before.
    Learning rates are those of LLaDA at these points (arXiv 2502.09992, Sec. 2.2 and 2.3), and not of LLaDA-MoE: 4e-4, down
    to 1e-4 and to 1e-5 in a straight line each, 2.5e-5 for sft.

    corpora: by stage's name; a stage that is left out has a placeholder, which is refused before anything trains. base: the
    model, the batch and the context before 8192; None: the preset llada_moe_7b_a1b. share: of the tokens, and of the peak
    rate's warm-up. settings: by stage's name, over all this. Raises UserError for a stage that isn't one of these.
    """
    base = preset("llada_moe_7b_a1b") if base is None else base
    length, batch, peak = base.data.sequence_length, base.trainer.batch_size, base.optimizer.learning_rate
    wide = {"data.sequence_length": 2 * length, "trainer.batch_size": max(1, batch // 2)}
    short, old, new = {"data.variable_length_share": 0.01}, {"model.rope_theta": 1e4}, {"model.rope_theta": 5e4}
    still = {"optimizer.schedule": "constant", "optimizer.warmup_steps": 0}
    falling = {"optimizer.schedule": "wsd", "optimizer.warmup_steps": 0, "optimizer.decay_fraction": 1.0}
    warm = round(share * base.optimizer.warmup_steps)
    plan: dict[str, tuple[float | None, dict[str, Any]]] = {
        "pretrain-1": (10e12, short | old | still | {"optimizer.warmup_steps": warm}),
        "pretrain-2": (10e12, short | old | still),
        "anneal-1": (500e9, short | new | falling | {"optimizer.final_lr_fraction": 0.25}),
        "anneal-2": (500e9, short | new | wide | falling | {
            "optimizer.learning_rate": peak / 4, "optimizer.final_lr_fraction": 0.1,
        }),
        "sft": (None, new | wide | {
            "objective.kind": "sft", "data.packing": True, "trainer.steps": sft_steps,
            "optimizer.schedule": "wsd", "optimizer.warmup_steps": min(50, sft_steps // 2),
            "optimizer.learning_rate": peak / 16, "optimizer.final_lr_fraction": 0.1,
        }),
    }  # fmt: skip
    for name in (*corpora, *(settings or {})):
        require(name in plan, f"'{name}' is no stage of LLaDA-MoE: use {', '.join(plan)}")
    entries = []
    for name, (tokens, own) in plan.items():
        if tokens is not None:
            per_step = build(dict(flatten(to_dict(base))) | own | {"trainer.steps": 10**9}).tokens_per_step
            own["trainer.steps"] = math.ceil(share * tokens / per_step)
        own["data.corpus"] = corpora.get(name, f"{UNNAMED}{name}")
        entries.append({"name": name, "settings": own | dict(flatten((settings or {}).get(name, {})))})
    return make_stages({**to_dict(base), KEY: entries})
