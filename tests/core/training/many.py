"""Trains a list of cases one after the other in the processes of one launch: python -m tests.core.training.many FOLDER.

FOLDER/cases.json holds [{"name", "settings", "untagged"?}]. Leaves NAME.json (the record), NAME.safetensors (the first
step's gradients, whole) and, of rank R, NAME-held-R.json (what the engine holds) there.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

import lightning
import torch
from safetensors.torch import save_file

from core.config.loading import build
from core.model.transformer import whole_name
from core.runtime.child_process import leave_with_parent, take_events_pipe
from core.runtime.ranks import Ranks
from core.training.communication import whole_tensor
from core.training.run import attempt
from tests.core.capacity.held import Held


class FirstGradients(lightning.Callback):
    """Keeps the whole gradient of the first step."""

    def __init__(self) -> None:
        self.whole: dict[str, torch.Tensor] = {}
        self.calls = 0

    def on_after_backward(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self.calls += 1
        if self.calls != pl_module.config.trainer.accumulate:
            return
        spread = pl_module.config.trainer.strategy == "deepspeed"
        stage = pl_module.config.deepspeed.stage if spread else 0
        for name, parameter in pl_module.denoiser.named_parameters():
            if stage:
                from deepspeed.utils import safe_get_full_grad

                gradient = safe_get_full_grad(parameter)
            else:
                gradient = parameter.grad
            self.whole[whole_name(name, parameter)] = whole_tensor(parameter, gradient.detach().float().clone())


def run_case(case: dict, folder: Path, ranks: Ranks) -> str:
    """Train one case and leave what it gave."""
    config, keep = build({}, case["settings"]), FirstGradients()
    held = [Held()] if config.trainer.strategy == "deepspeed" else []
    place = folder / case["name"]
    place.mkdir(exist_ok=True)
    record = attempt(config, place, ranks=ranks, callbacks=[keep, *held])
    if ranks.rank == 0:
        (folder / f"{case['name']}.json").write_text(record.to_json())
        gradients = {name: value.contiguous() for name, value in keep.whole.items()}
        save_file(gradients, folder / f"{case['name']}.safetensors")
    for one in held:
        (folder / f"{case['name']}-held-{ranks.rank}.json").write_text(json.dumps(one.bytes))
    return record.to_json()


def untag() -> None:
    """Let the engine take experts for parameters that all ranks share."""
    from core.model.parallel import ParallelMoE

    tag = ParallelMoE._tag

    def without(self: ParallelMoE) -> None:
        tag(self)
        for parameter in self.experts.parameters():
            parameter.allreduce = True
            del parameter.ds_zero_placement_family, parameter.ds_zero_partition_group_name

    ParallelMoE._tag = without  # type: ignore[method-assign]


def main(arguments: list[str]) -> int:
    """All cases; the last one's record is the answer."""
    folder = Path(arguments[0])
    emit = take_events_pipe()
    leave_with_parent(sys.stdin.fileno())
    cases = json.loads((folder / "cases.json").read_text())
    record, here = "", Ranks.of_environment()  # once: Lightning takes WORLD_SIZE away after a run
    for case in cases:
        if case.get("untagged"):
            untag()
        parallel = case["settings"].get("deepspeed.expert_parallel", 1)
        record = run_case(case, folder, replace(here, expert_parallel=parallel))
    emit(event="record", record=record)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
