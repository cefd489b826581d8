"""Formats of other trainers: a table of their options, what they can't express, and what of a config they need not know.

A format is one file in sweeps/export/formats, named after it, that adds an ExportFormat to EXPORT_FORMATS. Every key of a
config is in an option, a difference, a refusal or `ignored`, so that a new key can't be forgotten.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.config.model import ModelConfig
from core.config.run import RunConfig, get_field
from core.errors import UserError
from core.records.run_record import write_atomically
from core.registry import Registry
from core.runtime.printable import one_line


@dataclass(frozen=True)
class Job:
    """A config to train elsewhere, and the number of devices that its micro-batches are for."""

    config: RunConfig
    devices: int = 1

    @property
    def model(self) -> ModelConfig:
        return self.config.model

    @property
    def micro_batch(self) -> int:
        """Sequences of a device at a time."""
        return max(1, self.config.trainer.batch_size // self.config.trainer.accumulate // self.devices)

    @property
    def load_balancing(self) -> float:
        """Weight of the load-balancing loss; 0 of a dense model."""
        return self.config.objective.load_balancing_weight if self.model.num_experts else 0.0

    @property
    def z_loss(self) -> float:
        """Weight of the router z-loss; 0 of a dense model."""
        return self.config.objective.z_loss_weight if self.model.num_experts else 0.0

    @property
    def stage(self) -> int | None:
        """ZeRO's stage; None on a single device."""
        return self.config.deepspeed.stage if self.config.trainer.strategy == "deepspeed" else None

    @property
    def decay(self) -> str:
        """Shape of the learning rate after the warm-up; "constant" too where the last rate is the peak."""
        optimizer = self.config.optimizer
        return "constant" if optimizer.final_lr_fraction == 1 else optimizer.schedule

    @property
    def shared_experts(self) -> float:
        """Width of the shared expert in widths of a routed one."""
        return self.model.shared_expert_width / self.model.width_of_expert if self.model.num_experts else 0


@dataclass(frozen=True)
class Option:
    """An option of another trainer.

    name: its own; sections are separated by dots. keys: those of a config that it expresses. value: of a job; None leaves
    the option out. twin: its name in a second file of the format, empty where it isn't in there.
    """

    name: str
    keys: tuple[str, ...]
    value: Callable[[Job], Any]
    twin: str = ""


@dataclass(frozen=True)
class Limit:
    """Something that a trainer can't express. keys: of a config, the first being what is shown; applies: to a job."""

    keys: tuple[str, ...]
    applies: Callable[[Job], bool]
    why: str

    def line(self, job: Job) -> str:
        return one_line(f"{self.keys[0]}={get_field(job.config, self.keys[0])}: {self.why}")


@dataclass(frozen=True)
class ExportFormat:
    """A trainer's format.

    trainer, version: what reads it, and where its options were looked up. differences: what trains otherwise there, named in
    the files and on the terminal. refusals: what would make another model of it. ignored: keys that mean nothing there.
    files: texts by file name; it takes the job and the comment that heads them, without comment signs. start: how a job is
    started, a line.
    """

    name: str
    trainer: str
    version: str
    options: tuple[Option, ...]
    differences: tuple[Limit, ...]
    refusals: tuple[Limit, ...]
    ignored: tuple[str, ...]
    files: Callable[[Job, Sequence[str]], Mapping[str, str]]
    start: str

    def keys(self) -> set[str]:
        """Every key of a config that the format knows of."""
        entries: Iterable[Option | Limit] = (*self.options, *self.differences, *self.refusals)
        return {key for entry in entries for key in entry.keys} | set(self.ignored)

    def lost(self, job: Job) -> list[str]:
        """What of a job isn't expressed, a line each. Raises UserError for a model that can't be said."""
        for limit in self.refusals:
            if limit.applies(job):
                raise UserError(f"{self.trainer} can't express {limit.line(job)}")
        return [limit.line(job) for limit in self.differences if limit.applies(job)]


EXPORT_FORMATS: Registry[ExportFormat] = Registry("--format", folder="sweeps.export.formats")


def write_format(name: str, job: Job, folder: Path) -> list[str]:
    """Write a job's files in a format; returns what they don't express, a line each.

    Raises UserError for an unknown format and a model that can't be said, before anything is written.
    """
    kind = EXPORT_FORMATS[name]
    lost = kind.lost(job)
    head = [
        f"{kind.trainer} ({kind.version}), written by `ablate export --format {name}`. It wasn't run with {kind.trainer}.",
        f"Start: {kind.start}",
        f"Micro-batches are for {job.devices} device{'s' if job.devices > 1 else ''}.",
        *(["Not expressed:"] if lost else []),
        *(f"- {line}" for line in lost),
    ]
    for file, text in kind.files(job, head).items():
        write_atomically(folder / file, text)
    return lost


def comment(head: Sequence[str]) -> str:
    """Lines as comments of a shell script, YAML, TOML or Python."""
    return "".join(f"# {line}\n" for line in head)


def values(options: Iterable[Option], job: Job) -> dict[str, Any]:
    """Values of the options that a job has, by name."""
    found = {option.name: option.value(job) for option in options if option.name}
    return {name: value for name, value in found.items() if value is not None}


def copied(name: str, key: str, twin: str = "") -> Option:
    """An option that says the same as a key."""
    return Option(name, (key,), lambda job: get_field(job.config, key), twin)


def fixed(name: str, value: Any, twin: str = "") -> Option:
    """An option that every model here needs."""
    return Option(name, (), lambda job: value, twin)


def if_sparse(name: str, keys: tuple[str, ...], value: Any, twin: str = "") -> Option:
    """An option of mixtures alone. value: a constant, or a function of a job."""

    def of_mixture(job: Job) -> Any:
        said = value(job) if callable(value) else value
        return said if job.model.num_experts else None

    return Option(name, keys, of_mixture, twin)


def differs(key: str, allowed: Any, why: str) -> Limit:
    """A limit of all values of a key but one."""
    return Limit((key,), lambda job: get_field(job.config, key) != allowed, why)


def router_kinds(*kinds: str) -> Limit:
    """A refusal of all routers but some."""
    return Limit(
        ("model.router.kind",),
        lambda job: bool(job.model.num_experts) and job.model.router.kind not in kinds,
        f"its routers are {' and '.join(kinds)}",
    )


# What no trainer of causal language models has.
OBJECTIVE = (
    Limit(
        ("objective.kind", "objective.epsilon", "objective.timesteps", "objective.exact_mask_count", "objective.weighting",
         "objective.cart_p", "objective.block_schedule", "objective.block_warmup", "objective.block_decay",
         "objective.beta", "objective.draws"),
        lambda job: not job.config.objective.traits.causal,
        "next-token prediction is trained there; masking, timesteps and the loss's weights are to be added",
    ),
    differs("model.causal", True, "attention is causal there; the mask is to be removed"),
    differs("model.shifted", False, "logits are of the next token there"),
    differs("model.block_length", None, "attention by blocks is to be added"),
    differs("data.variable_length_share", 0.0, "all sequences have data.sequence_length tokens there"),
    differs("data.packing", False, "sequences are packed by that trainer's own data set"),
    differs("trainer.initial_weights", None, "weights start at random there; convert and load them"),
    differs("deepspeed.json", None, "DeepSpeed's own options aren't read"),
    differs("deepspeed.offload", "none", "nothing is offloaded"),
    Limit(("plugins",), lambda job: bool(job.config.plugins), "components of your own are to be added there"),
    Limit(("model.eos_id",), lambda job: job.model.causal, "sequences start with it here; the data set is to do the same"),
)  # fmt: skip

# What several have in common.
SHARES_OF_MICRO_BATCH = Limit(
    ("objective.load_balancing_weight",),
    lambda job: job.load_balancing > 0,
    "the shares of experts are those of a micro-batch there, of the whole batch here",
)
EARLY_DECAY = "each step of the decay has the rate that the next one has here"
FULLY_SHARDED = Limit(
    ("deepspeed.stage",),
    lambda job: job.stage is not None and job.stage < 3,
    "FSDP spreads parameters, gradients and optimizer states",
)
NORM_PER_HEAD = Limit(
    ("model.qk_norm",), lambda job: job.model.qk_norm == "projection", "queries and keys are normalised per head there"
)
WHOLE_THETA = Limit(("model.rope_theta",), lambda job: job.model.rope_theta % 1 != 0, "it is a whole number there")

# What another trainer has its own of, or what says nothing of a model that it can have.
IGNORED = (
    "model.mask_id", "model.pad_id",  # of the data set and the objective
    "model.router.sees", "model.router.time_features", "model.router.time_bins", "model.router.k_schedule",  # refused kinds
    "data.corpus", "data.tokenizer", "data.validation_sequences", "data.held_out_share", "data.variable_length_min",
    "data.chat_template", "trainer.validate_every", "trainer.keep_best", "trainer.stop_on_alarm", "trainer.accelerator",
    "trainer.strategy",
)  # fmt: skip
