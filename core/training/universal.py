"""A DeepSpeed checkpoint rewritten in the universal format, by a process of its own.

    python -P -m core.training.universal FROM TO

The folders are those that hold DeepSpeed's files. Whoever starts it has seen that the first is what was saved.
"""

import sys
from collections.abc import Sequence

from core.training.unpickling import only_known_types


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
