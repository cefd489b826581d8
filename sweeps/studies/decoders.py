"""Decoders: ways of decoding every trained model, from a declaration to what each model is asked."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from core.config.field_types import check_fields
from core.config.loading import text
from core.config.run import RunConfig
from core.diffusion.sampling import Sampling
from core.errors import UserError
from core.records.designs import DecodersDesign, DecodingConfig
from core.registry import nearest
from sweeps.studies.factors import Factor, Factorial, Listed
from sweeps.studies.study import Level, check_margin

FULL = "full"  # a block as long as the response
OWN_KEY = "tokens_per_call"
SET_ELSEWHERE = ("length", "seed")  # by the task, and by `decode_seeds`


@dataclass(frozen=True)
class Decoders:
    """Decoding of every trained model afterwards, on the task that it was trained on: no run is trained for it, and no
    config knows of it.

    factors, control, arms: as an ablation's; their keys are fields of core.diffusion.sampling.Sampling, or tokens_per_call
        (steps are then length / tokens_per_call). A block_length of "full" is one block.
    settings: of the same keys, shared by all.
    examples: held-out prompts, the same for all models; decode_seeds: how often each is answered where that is by chance.
    margin: differences of exact match smaller than this don't matter; None = equivalence is not claimed.
    """

    factors: tuple[Factor, ...]
    control: Mapping[str, Level]
    arms: Listed = "all"
    settings: Mapping[str, Any] = field(default_factory=dict)
    examples: int = 256
    decode_seeds: int = 1
    margin: float | None = None

    def __post_init__(self) -> None:
        check_fields(self, "decoders: ")

    def describe(self, configs: Mapping[str, RunConfig]) -> DecodersDesign:
        """Describe the decoders for a design. configs: of the arms that are to be decoded, by name, the control first; a
        causal one is decoded token after token alone.

        Raises UserError for what can't be decoded so, and for arms that answer no task or not the same one.
        """
        from core.data.tasks import examples, room  # numpy, which mistakes in declarations are refused without

        tasks = {_task(config) for config in configs.values()}
        if len(tasks) > 1:
            raise UserError(f"decoders: the arms are trained on several tasks ({', '.join(sorted(tasks))}): use one")
        task = tasks.pop()
        self._check(task, len(examples(task).held_out))
        try:
            arms = Factorial(self.factors, self.control, self.arms).expand()
        except UserError as error:
            raise UserError(f"decoders: {error}") from None
        length, causal = room(task), [arm for arm, config in configs.items() if config.model.causal]
        if next(iter(configs)) in causal:
            raise UserError("decoders: the control is causal and is decoded in one way only: let it be a masked model")
        names = {factor.key: factor.name for factor in self.factors}
        ways: list[DecodingConfig] = []
        for arm in arms:
            given = _sampling_settings(arm.name, {**self.settings, **arm.settings}, length)
            shown = (f"{names[key]} {text(level)}" for key, level in arm.settings.items() if level is not None)
            ways.append(DecodingConfig(arm.name, ", ".join(shown), given))
        _check_own_blocks(configs, ways)
        return DecodersDesign(
            task=task, examples=self.examples, decode_seeds=self.decode_seeds, length=length, margin=self.margin,
            control=ways[0].name, ways=tuple(ways), causal=tuple(causal),
        )  # fmt: skip

    def _check(self, task: str, held: int) -> None:
        if not 1 <= self.examples <= held:
            raise UserError(
                f"decoders: examples must lie between 1 and {held}, what task:{task} holds out, not {self.examples}"
            )
        if self.decode_seeds < 1:
            raise UserError(f"decoders: decode_seeds must be at least 1, not {self.decode_seeds}")
        check_margin(self.margin, "decoders: ")
        known = [entry.name for entry in fields(Sampling) if entry.name not in SET_ELSEWHERE] + [OWN_KEY]
        for key in (*(factor.key for factor in self.factors), *self.settings):
            if key not in known:
                raise UserError(f"decoders: unknown setting '{key}': {nearest(key, known)}")


def _check_own_blocks(configs: Mapping[str, RunConfig], ways: Sequence[DecodingConfig]) -> None:
    for arm, config in configs.items():
        own = config.model.block_length
        for way in ways if own else ():
            if way.settings.get("block_length") not in (None, own):
                raise UserError(
                    f"decoders: {way.name}: the arm {arm} is decoded in its own blocks (model.block_length={own}): leave "
                    "block_length out"
                )


def _task(config: RunConfig) -> str:
    from core.data.tasks import room, task_of  # numpy, as above

    try:
        name = task_of(config)
    except UserError as error:
        raise UserError(f"decoders: {error}") from None
    if config.data.sequence_length < room(name):
        raise UserError(
            f"decoders: task:{name} needs {room(name)} tokens for a response alone, and "
            f"data.sequence_length={config.data.sequence_length}"
        )
    return name


def _sampling_settings(name: str, settings: Mapping[str, Any], length: int) -> dict[str, Any]:
    """A way's settings as fields of Sampling, those alone that were given."""
    given = dict(settings) | {"length": length}
    if given.get("block_length") == FULL:
        given["block_length"] = length
    if (count := given.pop(OWN_KEY, None)) is not None:
        if given.get("threshold") is not None or given.get("steps") is not None:
            raise UserError(f"decoders: {name}: {OWN_KEY} excludes threshold and steps: leave it out")
        if not isinstance(count, int) or not 1 <= count <= length or length % count:
            raise UserError(f"decoders: {name}: {OWN_KEY}={count} must divide the {length} tokens of a response")
        given["steps"] = length // count
    try:
        Sampling(**given)
    except UserError as error:
        raise UserError(f"decoders: {name}: {error}") from None
    return given
