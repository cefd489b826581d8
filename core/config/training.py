"""Configuration of the optimizer, the training loop and DeepSpeed."""

from dataclasses import dataclass
from typing import Literal

from core.errors import require, require_limit

Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW and the learning-rate schedule: a linear warm-up to the peak, then one of three shapes.

    cosine falls to `final_lr_fraction` of the peak over all remaining steps. wsd (warm-up, stable, decay: MiniCPM, arXiv
    2404.06395, Sec. 4) stays at the peak, and falls to it linearly over the last `decay_fraction` of the steps, as in LLaDA
    (arXiv 2502.09992, Sec. 2.2 and 2.3). constant stays at the peak.
    """

    learning_rate: float = 2e-3  # peak learning rate
    beta1: float = 0.9  # AdamW's decay rate of the first moment
    beta2: float = 0.95  # AdamW's decay rate of the second moment
    weight_decay: float = 0.1  # decoupled weight decay of matrices; vectors have none
    warmup_steps: int = 20  # steps of the linear warm-up
    schedule: Literal["cosine", "wsd", "constant"] = "cosine"  # shape after the warm-up
    decay_fraction: float = 0.1  # share of the steps over which schedule=wsd decays
    final_lr_fraction: float = 0.1  # last learning rate as a share of the peak
    gradient_clip: float = 1.0  # largest gradient norm; 0: no clipping

    def __post_init__(self) -> None:
        require_limit(self, "optimizer", "be positive", "learning_rate")
        require_limit(self, "optimizer", "lie in [0, 1)", "beta1", "beta2")
        require_limit(self, "optimizer", "not be negative", "weight_decay", "warmup_steps", "gradient_clip")
        require_limit(self, "optimizer", "lie in [0, 1]", "final_lr_fraction")
        require_limit(self, "optimizer", "lie in (0, 1]", "decay_fraction")
        require(
            self.schedule == "wsd" or self.decay_fraction == OptimizerConfig.decay_fraction,
            f"optimizer.decay_fraction={self.decay_fraction} means nothing to optimizer.schedule={self.schedule}: leave it "
            "out, or use wsd",
        )


@dataclass(frozen=True)
class TrainerConfig:
    """Length of training, batches, device and checkpoints."""

    steps: int = 300  # optimizer steps
    batch_size: int = 16  # sequences per step, over all devices and micro-batches
    validate_every: int = 100  # steps between validations; 0: only after the last step
    log_every: int = 10  # steps between rows of the training curve
    accelerator: Literal["auto", "cpu", "cuda"] = "auto"  # device type; auto: CUDA where there is a GPU
    precision: Precision = "fp32"  # bf16: mixed precision, with weights in fp32
    compile: bool = False  # apply torch.compile to every layer
    initial_weights: str | None = None  # a model.safetensors of the same shapes to start from; null: random weights
    strategy: Literal["single", "deepspeed"] = "single"  # single: one device. deepspeed: any number, under DeepSpeed
    accumulate: int = 1  # micro-batches per step
    activation_checkpointing: bool = False  # recompute each layer in the backward pass instead of keeping activations
    checkpoint_every: int = 0  # steps between checkpoints; 0: none, an interrupted run starts again
    keep_best: str | None = None  # a validation metric at whose best value the weights are kept beside the final ones
    stop_on_alarm: bool = False  # end the run as failed at its first alarm (collapse, dead experts, spikes)

    def __post_init__(self) -> None:
        require_limit(self, "trainer", "be at least 1", "steps", "batch_size", "log_every", "accumulate")
        require_limit(self, "trainer", "not be negative", "validate_every", "checkpoint_every")
        require(
            self.batch_size % self.accumulate == 0,
            f"trainer.batch_size={self.batch_size} can't be split into trainer.accumulate={self.accumulate} "
            "micro-batches: use a multiple",
        )


@dataclass(frozen=True)
class DeepSpeedConfig:
    """DeepSpeed's layout of a run over devices (trainer.strategy=deepspeed)."""

    # ZeRO stage (arXiv 1910.02054). 1: optimizer states are partitioned, 2: gradients too, 3: parameters too
    stage: Literal[0, 1, 2, 3] = 2
    expert_parallel: int = 1  # devices over which the experts are spread; each such group holds every expert once
    offload: Literal["none", "optimizer", "parameters"] = "none"  # states kept in host memory
    json: str | None = None  # a DeepSpeed configuration file, merged over these fields

    def __post_init__(self) -> None:
        require(self.stage in (0, 1, 2, 3), f"deepspeed.stage must be 0, 1, 2 or 3, not {self.stage}")
        require_limit(self, "deepspeed", "be at least 1", "expert_parallel")
        require(
            self.offload == "none" or self.stage >= (3 if self.offload == "parameters" else 1),
            f"deepspeed.offload={self.offload} needs deepspeed.stage={3 if self.offload == 'parameters' else '1 to 3'}, "
            f"not {self.stage}: nothing else is spread that could be kept in host memory",
        )
