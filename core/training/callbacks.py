"""Lightning callbacks that log a run's learning curve, validations and expert load."""

import copy
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from core.config.run import RunConfig
from core.data.module import MaskedTextModule
from core.model.balance import dead_share, max_violation, utilisation_entropy
from core.records.metrics import METRICS, RATIO_BINS, RowLogger, Validation, part_metric, ratio_metric
from core.runtime.lightning_import import lightning
from core.training import health
from core.training.communication import ALL_TO_ALL, REDUCTION, from_all_ranks, mean_over_ranks
from core.training.telemetry import RoutingMemory

TRAIN_COLUMNS = ("loss", "nelbo", "load_balancing", "z_loss")


class TrainingDivergedError(RuntimeError):
    """A loss stopped being a finite number."""


class TrainingUnhealthyError(RuntimeError):
    """An alarm rang, and trainer.stop_on_alarm is set."""


class Recorder(lightning.Callback):
    """Collects a run's curve, validations and expert load, and passes each row on to the loggers.

    Losses stay on the device between rows: the hot path waits for nothing.
    """

    def __init__(self, config: RunConfig, loggers: Sequence[RowLogger] = ()) -> None:
        data = MaskedTextModule(config)
        self.config, self.loggers = config, tuple(loggers)
        self.floor = data.floor()
        self.bytes_per_token = data.corpus.bytes_per_token
        self.parts = [part.name for part in data.corpus.parts]  # of a mixture, whose NELBOs are measured one by one
        self.curve: dict[str, list[float]] = {}
        self.validation: dict[str, list[float]] = {}
        self.load_TLE: list[list[list[float]]] = []
        self.tokens = 0
        self.routing = RoutingMemory()
        self.alarms: list[health.Alarm] = []
        self.best: dict[str, Any] = {}  # of the weights that core.training.saving keeps
        self._losses: dict[str, list[Tensor]] = {name: [] for name in (*TRAIN_COLUMNS, "sums_L", "gradient_norms_P")}
        self._micro: list[dict[str, Tensor]] = []
        self._sent: list[list[float]] = []  # bytes of each kind, by step
        self._outputs: list[dict[str, Tensor]] = []

    def on_train_start(self, trainer: lightning.Trainer, module: Any) -> None:
        for name, rows in self._losses.items():  # of a run that goes on, read from its checkpoint
            self._losses[name] = [row.to(module.device) for row in rows]

    def on_train_batch_start(self, trainer: lightning.Trainer, module: Any, batch: Any, batch_idx: int) -> None:
        traffic = getattr(trainer.strategy, "traffic", None)
        if traffic is not None and batch_idx % self.config.trainer.accumulate == 0:
            traffic.take()  # of validations and checkpoints since the last step

    def on_train_batch_end(
        self, trainer: lightning.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._micro.append({name: outputs[name].detach() for name in (*TRAIN_COLUMNS, "sums_L")})
        self.tokens += batch.tokens_BL.numel() * trainer.world_size
        accumulate = self.config.trainer.accumulate
        if (batch_idx + 1) % accumulate:
            return
        for name in (*TRAIN_COLUMNS, "sums_L"):
            self._losses[name].append(torch.stack([micro[name] for micro in self._micro]).mean(0))
        self._micro = []
        if module.config.trainer.strategy == "deepspeed" and module.config.deepspeed.stage > 0:
            norm = module.trainer.model.get_global_grad_norm()
            module.gradient_norms_P = torch.as_tensor(norm, dtype=torch.float32, device=module.device).reshape(1)
        self._losses["gradient_norms_P"].append(module.gradient_norms_P)
        traffic = getattr(trainer.strategy, "traffic", None)
        if traffic is not None:
            taken = traffic.take()
            self._sent.append([float(taken[kind]) for kind in (ALL_TO_ALL, REDUCTION)])
        done = trainer.global_step
        if done % self.config.trainer.log_every == 0 or done == self.config.trainer.steps:
            self._flush(trainer, module, done)
        if done == self.config.trainer.steps:
            self._validate_last(trainer, module)

    def _flush(self, trainer: lightning.Trainer, module: lightning.LightningModule, step: int) -> None:
        rows = {name: mean_over_ranks(torch.stack(values)).cpu() for name, values in self._losses.items()}
        self._losses = {name: [] for name in rows}
        names = [name for name, p in module.named_parameters() if p.grad is not None]
        reason = diagnose(rows, names if len(names) == rows["gradient_norms_P"].shape[1] else ["some parameter"])
        if reason:
            index, what = reason
            raise TrainingDivergedError(f"training diverged at step {step - len(rows['loss']) + 1 + index}: {what}")
        row = {f"train/{name}": float(rows[name].mean()) for name in TRAIN_COLUMNS}
        row["train/gradient_norm"] = float(rows["gradient_norms_P"].norm(dim=-1).mean())
        row["train/learning_rate"] = trainer.optimizers[0].param_groups[0]["lr"]
        if self._sent:
            sent = mean_over_ranks(torch.tensor(self._sent, dtype=torch.float64, device=module.device).mean(0))
            for kind, count in zip((ALL_TO_ALL, REDUCTION), sent.tolist(), strict=True):
                row[f"train/{kind}_bytes"] = count
            self._sent = []
        self._append(self.curve, step, row)
        self._ring(health.of_curve(step, self.curve))

    def _ring(self, alarms: list[health.Alarm]) -> None:
        self.alarms += alarms
        if alarms and self.config.trainer.stop_on_alarm:
            step, kind, detail = alarms[0]
            raise TrainingUnhealthyError(f"{kind} at step {step}: {detail} (trainer.stop_on_alarm)")

    def _validate_last(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        """Lightning validates on multiples only; the final model's numbers are the ones that count."""
        every = self.config.trainer.validate_every or self.config.trainer.steps
        if self.config.trainer.steps % every == 0:
            return
        module.eval()
        with torch.inference_mode():
            for index, batch in enumerate(trainer.val_dataloaders or ()):
                batch = trainer.strategy.batch_to_device(batch, module.device, 0)
                with trainer.precision_plugin.val_step_context():
                    self._outputs.append(trainer.strategy.validation_step(batch, index))  # type: ignore[arg-type]
        module.train()
        self.on_validation_end(trainer, module)

    def state_dict(self) -> dict[str, Any]:
        """Everything so far, averaged over ranks, so that a run that goes on from here leaves one whole record."""
        state = {name: getattr(self, name) for name in ("curve", "validation", "load_TLE", "tokens")}
        losses = {name: mean_over_ranks(torch.stack(rows)).tolist() for name, rows in self._losses.items() if rows}
        steps = zip(*from_all_ranks(self._sent), strict=True)
        sent = [[statistics.fmean(kind) for kind in zip(*step, strict=True)] for step in steps]
        kept = {"routing": self.routing.state_dict(), "alarms": [list(alarm) for alarm in self.alarms]}
        return copy.deepcopy(state | kept | {"losses": losses, "sent": sent})

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        state = dict(state_dict)
        for name, rows in state.pop("losses").items():
            self._losses[name] = [torch.tensor(row) for row in rows]
        self._sent = state.pop("sent")
        self.routing.load_state_dict(state.pop("routing"))
        self.alarms = [health.Alarm(*alarm) for alarm in state.pop("alarms")]
        for name, value in state.items():
            setattr(self, name, value)

    def on_validation_batch_end(
        self, trainer: lightning.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._outputs.append(outputs)

    def on_validation_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        gathered = from_all_ranks([{name: value.cpu() for name, value in out.items()} for out in self._outputs])
        self._outputs = [output for outputs in gathered for output in outputs if len(output["nelbo_B"])]
        binned = not self.config.objective.traits.causal
        row = summarise(self._outputs, binned=binned)
        row |= by_part(self._outputs, self.parts) | measured(self.config, self._outputs)
        if self.floor is not None:
            row["val/excess_nelbo"] = row["val/nelbo"] - self.floor
        if self.bytes_per_token is not None:
            row["val/bits_per_byte"] = row["val/nelbo"] / math.log(2) / self.bytes_per_token
        alarms: list[health.Alarm] = []
        if "counts_LE" in self._outputs[0]:
            # Every rank's counts are those of all ranks.
            counts_LE = torch.stack([output["counts_LE"] for output in gathered[0]]).sum(0)
            row |= load_statistics(counts_LE)
            row |= self.routing.add(trainer.global_step, self._outputs, [outputs[0] for outputs in gathered])
            self.load_TLE.append((counts_LE.double() / counts_LE.sum(-1, keepdim=True)).tolist())
            tokens = sum(output["top1_SN"].shape[1] for output in self._outputs)
            alarms = health.of_load(trainer.global_step, counts_LE, tokens, row["val/load_balancing"])
        self._outputs = []
        self._append(self.validation, trainer.global_step, row)
        self._ring(alarms)

    def _append(self, table: dict[str, list[float]], step: int, row: dict[str, float]) -> None:
        where = {"step": float(step), "tokens": float(self.tokens)}
        for name, value in (where | row).items():
            table.setdefault(name, []).append(value)
        for logger in self.loggers:
            logger.log_metrics(row, step)


def summarise(outputs: Sequence[dict[str, Tensor]], *, binned: bool = True) -> dict[str, float]:
    """Validation metrics from the outputs of all validation batches, by the names in core.records.metrics.

    `binned` adds the cross-entropy per masked token by mask ratio, in tenths: "val/cross_entropy@0.3" is of ratios in
    (0.2, 0.3]. Under an exact mask count a sequence's NELBO is its mean masked cross-entropy: the bins average to the NELBO.
    """
    nelbo_N, ratio_N = _column(outputs, "nelbo_B"), _column(outputs, "ratio_B")
    error = stratified_error(nelbo_N[ratio_N.argsort(stable=True)])
    row = {"val/nelbo": float(nelbo_N.mean()), "val/nelbo_se": error}
    if binned:
        bin_N = (ratio_N * RATIO_BINS).ceil().long().clamp(1, RATIO_BINS)
        for index in range(1, RATIO_BINS + 1):
            if (bin_N == index).any():
                row[ratio_metric(index)] = float(nelbo_N[bin_N == index].mean())
    # Auxiliary losses are means over tokens: those of packed sequences are not all alike many.
    size_B = torch.tensor([_tokens(output) for output in outputs], dtype=torch.float64)
    for name in ("load_balancing", "z_loss"):
        if name in outputs[0]:
            values_B = torch.stack([output[name] for output in outputs]).double().cpu()
            row[f"val/{name}"] = float((size_B / size_B.sum() * values_B).sum())
    return row


def _column(outputs: Sequence[dict[str, Tensor]], name: str) -> Tensor:
    return torch.cat([output[name] for output in outputs]).double().cpu()


def _tokens(output: dict[str, Tensor]) -> float:
    return float(output["top1_SN"].shape[1] if "top1_SN" in output else len(output["nelbo_B"]))


def measured(config: RunConfig, outputs: Sequence[dict[str, Tensor]]) -> dict[str, float]:
    """The metrics that are registered with a function that measures them."""
    validation = Validation(config, outputs, lambda name: _column(outputs, name) if name in outputs[0] else None)
    values = {each.name: each.implementation(validation) for each in METRICS.entries() if each.implementation}
    return {name: value for name, value in values.items() if value is not None}


def by_part(outputs: Sequence[dict[str, Tensor]], parts: Sequence[str]) -> dict[str, float]:
    """The NELBO of each part of a mixture, from the outputs of all validation batches."""
    if not parts:
        return {}
    nelbo_N, domain_N = _column(outputs, "nelbo_B"), _column(outputs, "domain_B")
    return {part_metric(name): float(nelbo_N[domain_N == index].mean()) for index, name in enumerate(parts)}


def load_statistics(counts_LE: Tensor) -> dict[str, float]:
    """Expert-load metrics of the (sparse layers, E) assignments of a whole validation, means over layers."""
    return {
        "load/max_vio": float(max_violation(counts_LE).mean()),
        "load/entropy": float(utilisation_entropy(counts_LE).mean()),
        "load/dead_experts": float(dead_share(counts_LE).mean()),
    }


def stratified_error(values_N: Tensor) -> float:
    """Standard error of the mean of one value per stratum, values in the order of the strata.

    Neighbouring strata stand in for repeats of one (successive differences; Cochran, Sampling Techniques, 3rd ed.,
    Sec. 5A.12): N / (2 (N - 1)) sum of (v_i - v_{i+1})^2 / N^2, on the large side where the mean moves along the strata.
    """
    count = len(values_N)
    if count < 2:
        return float("nan")
    return float((values_N.diff().square().sum() / (2 * (count - 1) * count)).sqrt())


def diagnose(rows: Mapping[str, Tensor], parameters: Sequence[str]) -> tuple[int, str] | None:
    """The first step (index into the rows) at which something stopped being finite, and where it first appeared.

    rows: per step T the losses (T,), each layer's output sum (T, layers + 1) and each parameter's gradient norm (T, P). The
    forward pass breaks at the lowest layer first, the backward pass at the last parameter. Returns None when all is finite.
    """
    finite_T = torch.stack([torch.isfinite(rows[name]) for name in TRAIN_COLUMNS]).all(0)
    finite_T = finite_T & torch.isfinite(rows["gradient_norms_P"]).all(-1) & torch.isfinite(rows["sums_L"]).all(-1)
    if finite_T.all():
        return None
    step = int((~finite_T).nonzero()[0])
    broken_L = (~torch.isfinite(rows["sums_L"][step])).nonzero()
    if len(broken_L):
        place = f"layer {int(broken_L[0]) - 1}" if broken_L[0] else "the embedding"
        return step, f"NaN or Inf first appeared in the output of {place}"
    for name in TRAIN_COLUMNS[1:]:
        if not torch.isfinite(rows[name][step]):
            return step, f"all layers are finite, but {name} is NaN or Inf"
    if not torch.isfinite(rows["loss"][step]):
        return step, "every loss is finite, but their weighted sum is NaN or Inf"
    broken_P = (~torch.isfinite(rows["gradient_norms_P"][step])).nonzero()
    return step, f"the loss is finite, but the gradient of {parameters[int(broken_P[-1])]} is NaN or Inf"
