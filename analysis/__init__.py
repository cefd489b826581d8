"""Statistics, verdicts and reports, from records alone.

`from analysis import load_study, judge, runs, curves, plot` is for notebooks (docs/notebooks.md).
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # numpy and matplotlib, which importers of a part do without
    from analysis.report.data import curves, load_study, plot, runs
    from analysis.verdicts.judge import judge

__all__ = ["curves", "judge", "load_study", "plot", "runs"]


def __getattr__(name: str) -> Any:
    """A function of the Python interface. Imported at its first use: other importers of this package need none of it."""
    if name not in __all__:
        raise AttributeError(f"module 'analysis' has no attribute '{name}'")
    home = "analysis.verdicts.judge" if name == "judge" else "analysis.report.data"
    return getattr(importlib.import_module(home), name)
