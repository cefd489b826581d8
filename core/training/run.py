"""train(config) -> RunRecord: the only way in."""

import logging
import math
import os
import time
import traceback
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from core.config.run import RunConfig, config_hash, to_dict, to_yaml
from core.data.corpora import describe as describe_data
from core.data.inputs import fingerprint
from core.data.module import MaskedTextModule
from core.errors import UserError
from core.model.flops import count, training_flops
from core.records import pending_record, run_record
from core.records.metrics import RowLogger
from core.records.provenance import describe, slurm_job, source_sha256
from core.records.run_record import RunRecord
from core.runtime.lightning_import import lightning
from core.runtime.ranks import LAUNCHED, Ranks
from core.runtime.retry import OutOfPatienceError, Patience, no_space
from core.training import health, preemption
from core.training.callbacks import Recorder, TrainingDivergedError
from core.training.checkpoint_files import FOLDER, SINGLE, notes, remove
from core.training.checks import check
from core.training.communication import from_all_ranks
from core.training.deepspeed_config import uses_cuda
from core.training.module import MaskedDiffusion
from core.training.rank_launcher import RankFailedError, launch
from core.training.resume_point import find
from core.training.saving import BestKeeper, Checkpointer, StepReachedError
from core.training.seals import check_key
from core.training.strategy import strategy_of
from core.training.weights import first_stage, load_weights, save_weights, starting_weights

log = logging.getLogger(__name__)
source_sha256()  # of the files as they are imported: they may be edited while this process trains


@preemption.heeded()
def train(
    config: RunConfig,
    folder: Path,
    *,
    loggers: Sequence[RowLogger] = (),
    study: Mapping[str, Any] | None = None,
    devices: int = 1,
    until: int | None = None,
    before: RunRecord | None = None,
) -> RunRecord:
    """Train one run and leave its record in `folder`: record.json, and beside it config.yaml and the final weights.

    Under trainer.strategy=deepspeed it trains in `devices` processes of this host; or, where torchrun, srun or DeepSpeed's
    launcher started this process, as one of their ranks, of which rank 0 leaves the record. A run that was cut off goes on
    from its last checkpoint that is whole and this user's (core.training.resume_point). A finished record is set aside first.
    A failure leaves a record of status "failed" with the reason, and traceback.txt; an interruption leaves none. Raises
    UserError for a mistake in the config, before training; TrainingPausedError where it is asked to pause
    (core.training.preemption), after a checkpoint, whatever trainer.checkpoint_every says; and FencedOffError, with nothing
    more written, once another process has taken the run over (core.records.fencing).

    before: record of the stage whose weights the run starts from (a first stage in its own folder is found): the record's
    FLOPs and tokens are of both. until: pause after that step of the whole run's schedule, with a checkpoint and a record of
    status "paused" whose metrics are the last validation's; going on from there equals training at one go. One process only.
    """
    spread = config.trainer.strategy == "deepspeed"
    ranks = Ranks.of_environment(config.deepspeed.expert_parallel) if spread else Ranks()
    among = ranks.size > 1
    if until is not None and config.trainer.strategy != "single":
        raise UserError("a run can be paused part-way under trainer.strategy=single only")
    check(config, ranks.size if among else devices)
    check_key()
    starting_weights(config, folder)
    before = first_stage(config, folder) or before
    folder.mkdir(parents=True, exist_ok=True)
    if ranks.rank == 0:
        if run_record.is_finished(folder):  # of an earlier training, which this one's is not to be put over
            run_record.set_aside(folder)
        text = to_yaml(config)
        Patience.of_environment().call(
            lambda again: run_record.write_atomically(folder / "config.yaml", text), no_space
        )
    if among or config.trainer.strategy == "single":
        record = attempt(config, folder, loggers=loggers, ranks=ranks, until=until)
    else:
        find(config, folder, Ranks(size=devices, expert_parallel=config.deepspeed.expert_parallel), convert=True)
        started = time.perf_counter()
        try:
            record = launch(config, folder, devices, loggers)
        except RankFailedError as failure:
            record = failure.partial or RunRecord(status="failed", **_facts(config, Ranks(size=devices)))
            record = replace(record, status="failed", reason=str(failure), metrics={})
            record = replace(record, wall_time_s=time.perf_counter() - started, finished_at=_now())
    record = replace(record, study=dict(study or {}), provenance=record.provenance | slurm_job())
    if before is not None:
        flops = record.flops + before.flops if record.status == "complete" else record.flops
        record = replace(record, before=before.spent, flops=flops)
    if ranks.rank == 0:
        record = replace(record, notes=notes(folder / FOLDER))
        pending_record.keep(record, folder)
        if record.status == "complete":
            remove(folder)
    return record


def attempt(
    config: RunConfig,
    folder: Path,
    *,
    loggers: Sequence[RowLogger] = (),
    ranks: Ranks = Ranks(),  # noqa: B008  (frozen)
    callbacks: Sequence[lightning.Callback] = (),
    until: int | None = None,
) -> RunRecord:
    """Train in this process, as one rank of those that train the run, and return its record without leaving it."""
    facts = _facts(config, ranks)
    started = time.perf_counter()
    for line in describe_data([config.data]) if ranks.rank == 0 else ():
        log.info("%s", line)
    recorder = Recorder(config, loggers)
    try:
        measured = _fit(config, folder, recorder, ranks, callbacks, until)
        facts["provenance"]["weights_sha256"] = measured.pop("weights")
        return RunRecord(status="complete", **facts, **measured, **_seen(recorder, started))
    except StepReachedError as pause:
        metrics = _last(recorder.validation)
        return RunRecord(status="paused", reason=str(pause), metrics=metrics, **facts, **_seen(recorder, started))
    except OutOfPatienceError:
        raise  # what it waited for is no fault of the run
    except Exception as error:
        trace = "traceback.txt" if ranks.size == 1 else f"traceback-rank-{ranks.rank}.txt"
        try:
            run_record.write_atomically(folder / trace, traceback.format_exc())
        except OSError as full:
            log.error("%s can't be written (%s):\n%s", folder / trace, full.strerror, traceback.format_exc())
        reason = f"{type(error).__name__}: {error}".strip().splitlines()[0]
        return RunRecord(status="failed", reason=reason, **facts, **_seen(recorder, started))


def _facts(config: RunConfig, ranks: Ranks) -> dict[str, Any]:
    """Facts of a run before training."""
    return {
        "run_hash": config_hash(config),
        "arm_hash": config_hash(config, with_seed=False),
        "seed": config.seed,
        "config": to_dict(config),
        "parameters": vars(count(config.model)),
        "data_fingerprint": fingerprint(config),
        "provenance": describe("cuda" if uses_cuda(config) else "cpu") | {"devices": ranks.size},
        "started_at": _now(),
    }


def _fit(
    config: RunConfig,
    folder: Path,
    recorder: Recorder,
    ranks: Ranks,
    callbacks: Sequence[lightning.Callback],
    until: int | None,
) -> dict[str, Any]:
    checkpointer = Checkpointer(config, folder, ranks, pause_after=until)
    keeper = BestKeeper(config, folder, ranks, recorder)
    trainer = _trainer(config, folder, [*callbacks, checkpointer, recorder, keeper], ranks)
    if ranks.size > 1:
        trainer.strategy.setup_environment()  # the fit would do it later, and all ranks choose a checkpoint together
    found, weights = find(config, folder, ranks, agree=from_all_ranks), starting_weights(config, folder)
    keeper.begin(goes_on=found is not None)
    module = MaskedDiffusion(config, ranks)
    data = MaskedTextModule(config, found.step if found else 0, rank=ranks.rank, world_size=ranks.size)
    if weights and not found:
        load_weights(module.denoiser, weights)
        module.keep_reference()
    if found and found.universal:
        trainer.strategy.config["checkpoint"] = {"load_universal": True}  # type: ignore[attr-defined]
    saved = (found.path if config.trainer.strategy == "deepspeed" else found.path / SINGLE) if found else None
    began, tokens = time.perf_counter(), recorder.tokens
    trainer.fit(module, data, ckpt_path=saved, weights_only=True)
    training_s = time.perf_counter() - began
    if not math.isfinite(recorder.validation["val/nelbo"][-1]):
        raise TrainingDivergedError(f"the NELBO on validation is not finite at step {config.trainer.steps}")
    kept = save_weights(module.denoiser, config, folder, ranks)
    here = recorder.tokens - tokens - (found.step * config.tokens_per_step if found else 0)
    rate = here / training_s
    return {
        "metrics": {
            **_last(recorder.validation),
            "train/nelbo": recorder.curve["train/nelbo"][-1],
            "train/tokens_per_second": rate,
        },
        "tokens_per_second": rate,
        "flops": training_flops(config),
        "weights": kept,
    }


def _last(validation: Mapping[str, Sequence[float]]) -> dict[str, float]:
    return {name: column[-1] for name, column in validation.items() if name not in ("step", "tokens")}


def _trainer(config: RunConfig, folder: Path, callbacks: list[lightning.Callback], ranks: Ranks) -> lightning.Trainer:
    # Lightning's advice (more dataloader workers, a GPU that is there but unused) doesn't fit runs that are packed
    # onto a share of the cores on purpose.
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for category in (UserWarning, FutureWarning):
        warnings.filterwarnings("ignore", module=r"lightning\.(pytorch|fabric).*", category=category)
    settings = config.trainer
    spread = settings.strategy == "deepspeed"
    return lightning.Trainer(
        default_root_dir=folder,
        accelerator="cuda" if uses_cuda(config) else "cpu",
        strategy=strategy_of(config, ranks) if spread else "auto",
        devices=ranks.local_size,
        num_nodes=ranks.hosts,
        plugins=_environment(ranks),
        precision="bf16-mixed" if settings.precision == "bf16" else "32-true",
        max_steps=settings.steps,
        accumulate_grad_batches=settings.accumulate,
        val_check_interval=(settings.validate_every or settings.steps) * settings.accumulate,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        gradient_clip_val=config.optimizer.gradient_clip or None,
        callbacks=callbacks,
        logger=False,  # the recorder passes rows on
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,  # the batches are shared out already
        inference_mode=not spread,  # ZeRO-3 gathers parameters in place, which inference tensors refuse
    )


def _environment(ranks: Ranks) -> lightning.fabric.plugins.environments.ClusterEnvironment | None:
    """Lightning's environment of the processes. Lightning requeues no Slurm job: whoever started the training owns that."""
    environments = lightning.fabric.plugins.environments
    if LAUNCHED in os.environ or ranks.size == 1:
        return environments.LightningEnvironment()
    return environments.SLURMEnvironment(auto_requeue=False) if environments.SLURMEnvironment.detect() else None


def seconds_per_step(config: RunConfig, steps: int = 6) -> float:
    """Median wall time of a training step on this machine as it is now, after two steps of warm-up."""
    module, data = MaskedDiffusion(config), MaskedTextModule(config)
    device = torch.device("cuda" if uses_cuda(config) else "cpu")
    module.to(device)
    optimizer = module.configure_optimizers()["optimizer"]
    batches, times = data.train_dataloader(), []
    for step in range(steps + 2):
        began = time.perf_counter()
        batch = module.transfer_batch_to_device(batches.batch(step), device, 0)
        module.training_step(batch, step)["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - began)
    return sorted(times[2:])[steps // 2]


def _seen(recorder: Recorder, started: float) -> dict[str, Any]:
    return {
        "curve": recorder.curve,
        "validation": recorder.validation,
        "expert_load": {"step": [int(step) for step in recorder.validation.get("step", [])], "load": recorder.load_TLE},
        "routing": recorder.routing.to_dict(),
        "best": recorder.best,
        "alarms": [alarm._asdict() for alarm in health.summary(recorder.alarms)],
        "wall_time_s": time.perf_counter() - started,
        "finished_at": _now(),
    }


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
