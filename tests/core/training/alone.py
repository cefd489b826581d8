"""A training in a process of its own: python -m tests.core.training.alone FOLDER DEVICES.

FOLDER/wanted.yaml is its config.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from core.config.loading import load
from core.training.run import train


def main(arguments: Sequence[str]) -> int:
    """Train, and leave what became of it in the record."""
    folder = Path(arguments[0])
    train(load(folder / "wanted.yaml"), folder, devices=int(arguments[1]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
