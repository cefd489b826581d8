"""What a run tells while it trains: its learning curve, its validations and its expert load."""

from collections.abc import Sequence
from typing import Any

import lightning
import torch
from torch import Tensor

from core.config import RunConfig
from core.model.balance import dead_share, max_violation, utilisation_entropy

TRAIN_COLUMNS = ("loss", "nelbo", "load_balancing", "z_loss")


class TrainingDivergedError(RuntimeError):
    """A loss stopped being a finite number."""


class Recorder(lightning.Callback):
    """Collects a run's curve, validations and expert load, and passes each row on to the trainer's loggers.

    Losses stay on the device between rows: the hot path waits for nothing.
    """

    def __init__(self, config: RunConfig, entropy: float | None) -> None:
        self.config, self.entropy = config, entropy
        self.curve: dict[str, list[float]] = {}
        self.validation: dict[str, list[float]] = {}
        self.load_steps: list[int] = []
        self.load_TLE: list[list[list[float]]] = []
        self._losses: dict[str, list[Tensor]] = {name: [] for name in TRAIN_COLUMNS}
        self._outputs: list[dict[str, Tensor]] = []

    def on_train_batch_end(
        self, trainer: lightning.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        for name in TRAIN_COLUMNS:
            self._losses[name].append(outputs[name].detach())
        done = trainer.global_step
        if done % self.config.trainer.log_every == 0 or done == self.config.trainer.steps:
            self._flush(trainer, done)

    def _flush(self, trainer: lightning.Trainer, step: int) -> None:
        rows = {name: torch.stack(values) for name, values in self._losses.items()}
        self._losses = {name: [] for name in TRAIN_COLUMNS}
        broken = (~torch.isfinite(rows["loss"])).nonzero()
        if len(broken):
            first = step - len(rows["loss"]) + 1 + int(broken[0])
            raise TrainingDivergedError(f"the loss is not finite at step {first}: {_blame(rows, int(broken[0]))}")
        row = {f"train/{name}": float(values.mean()) for name, values in rows.items()}
        row["train/learning_rate"] = trainer.optimizers[0].param_groups[0]["lr"]
        self._append(trainer, self.curve, step, row)

    def on_validation_batch_end(
        self, trainer: lightning.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._outputs.append(outputs)

    def on_validation_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        counts_LE = torch.stack([output["counts_LE"] for output in self._outputs]).sum(0)
        row = summarise(self._outputs, counts_LE, self.entropy)
        self._outputs = []
        self.load_steps.append(trainer.global_step)
        self.load_TLE.append((counts_LE.double() / counts_LE.sum(-1, keepdim=True)).tolist())
        self._append(trainer, self.validation, trainer.global_step, row)

    def _append(
        self, trainer: lightning.Trainer, table: dict[str, list[float]], step: int, row: dict[str, float]
    ) -> None:
        where = {"step": float(step), "tokens": float(step * self.config.tokens_per_step)}
        for name, value in (where | row).items():
            table.setdefault(name, []).append(value)
        for logger in trainer.loggers:
            logger.log_metrics(row, step)


def summarise(outputs: Sequence[dict[str, Tensor]], counts_LE: Tensor, entropy: float | None) -> dict[str, float]:
    """Validation metrics from the outputs of all validation batches, by the names in core.metrics.

    The NELBO's standard error over sequences ("val/nelbo_se") ignores the stratification of mask counts, so it errs
    on the large side.
    """
    nelbo_N = torch.cat([output["nelbo_B"] for output in outputs]).double()
    size_B = torch.tensor([float(len(output["nelbo_B"])) for output in outputs], dtype=torch.float64)
    share_B = (size_B / size_B.sum()).to(nelbo_N.device)
    row = {
        "val/nelbo": float(nelbo_N.mean()),
        "val/nelbo_se": float(nelbo_N.std() / len(nelbo_N) ** 0.5),
        "val/bits_per_byte": float(nelbo_N.mean() / torch.tensor(2.0).log()),
        "load/max_vio": float(max_violation(counts_LE).mean()),
        "load/entropy": float(utilisation_entropy(counts_LE).mean()),
        "load/dead_experts": float(dead_share(counts_LE).mean()),
    }
    for name in ("load_balancing", "z_loss"):
        row[f"val/{name}"] = float((share_B * torch.stack([output[name] for output in outputs]).double()).sum())
    if entropy is not None:
        row["val/excess_nelbo"] = row["val/nelbo"] - entropy
    return row


def _blame(rows: dict[str, Tensor], index: int) -> str:
    parts = [name for name in TRAIN_COLUMNS[1:] if not torch.isfinite(rows[name][index])]
    return f"{', '.join(parts) or 'their weighted sum'} is NaN or infinite"
