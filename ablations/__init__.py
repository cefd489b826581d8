"""The declared studies, one file per question, and the command line."""

import sys
from pathlib import Path

if sys.argv[:1] == [
    "-m"
]:  # python -m looks in the current folder first, where a `core` or a `torch.py` may be a user's
    sys.path.append(sys.path[0])
    sys.path[0] = str(Path(__file__).resolve().parents[1])
