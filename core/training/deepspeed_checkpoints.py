"""Reading of DeepSpeed's checkpoints by an allow-list of types, also where a library asks for any; and their conversion.

    python -P -m core.training.deepspeed_checkpoints FROM TO

rewrites a checkpoint in the universal format. The folders are those that hold DeepSpeed's files. Whoever starts it has seen
that the first is what was saved.
"""

import contextlib
import importlib
import sys
from collections.abc import Iterator, Sequence

import torch

from core.runtime.child_process import exported

FORCED = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"  # torch.load heeds it, whatever it is told
# What DeepSpeed's checkpoints hold beside tensors and what torch allows by itself.
KNOWN = (
    ("deepspeed.runtime.fp16.loss_scaler", "LossScaler"),
    ("deepspeed.runtime.zero.config", "ZeroStageEnum"),
    ("deepspeed.utils.tensor_fragment", "fragment_address"),
)


@contextlib.contextmanager
def only_known_types() -> Iterator[None]:
    """Inside, torch.load makes nothing but tensors, plain values and the types above, and calls nothing else."""
    known = [getattr(importlib.import_module(module), name) for module, name in KNOWN]
    with exported(FORCED, "1"), torch.serialization.safe_globals(known):
        yield


def main(arguments: Sequence[str]) -> None:
    """Convert. Nothing that is read may be of a type that isn't known."""
    from deepspeed.checkpoint import ds_to_universal

    source, target = arguments
    sys.argv = [ds_to_universal.__name__, "--input_folder", source, "--output_folder", target]
    sys.argv += ["--num_extract_workers", "1", "--num_merge_workers", "1"]  # in this process, whose list holds
    with only_known_types():
        ds_to_universal.main(ds_to_universal.parse_arguments())


if __name__ == "__main__":
    main(sys.argv[1:])
