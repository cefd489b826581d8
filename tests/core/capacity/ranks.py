"""Measures a run's memory in the processes of one launch: python -m tests.core.capacity.ranks FOLDER.

FOLDER/cases.json holds {name: settings}. Each case trains two steps under DeepSpeed; rank R leaves NAME-R.json: what it held,
and the most that the second step's forward and backward passes allocated beside it.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning
from torch.profiler import ProfilerActivity, profile

from core.config.loading import build
from core.runtime.child_process import leave_with_parent, take_events_pipe
from core.runtime.ranks import Ranks
from core.training.run import attempt
from tests.core.capacity.held import Held
from tests.core.capacity.measuring import as_accelerator, most_allocated


class Measured(Held):
    """The engine's states, and what torch's allocator gave beside them."""

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        if trainer.global_step == 1 and not hasattr(self, "heard"):
            self.heard = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
            self.heard.__enter__()

    def on_after_backward(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        super().on_after_backward(trainer, pl_module)
        if trainer.global_step == 1 and not trainer.fit_loop.epoch_loop._should_accumulate():
            self.heard.__exit__(None, None, None)
            self.bytes["allocated"] = most_allocated(self.heard)


def main(arguments: list[str]) -> int:
    """All cases; the last one's record is the answer."""
    folder = Path(arguments[0])
    emit = take_events_pipe()
    leave_with_parent(sys.stdin.fileno())
    cases = json.loads((folder / "cases.json").read_text())
    record, here = "", Ranks.of_environment()
    for name, settings in cases.items():
        config, measured = build({}, settings), Measured()
        ranks = replace(here, expert_parallel=config.deepspeed.expert_parallel)
        (folder / name).mkdir(exist_ok=True)
        with as_accelerator():
            record = attempt(config, folder / name, ranks=ranks, callbacks=[measured]).to_json()
        (folder / f"{name}-{ranks.rank}.json").write_text(json.dumps(measured.bytes))
    emit(event="record", record=record)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
