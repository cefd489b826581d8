"""`ablate list` of a search."""

from pathlib import Path
from typing import Any

from rich.text import Text

from core.runtime.terminal import line
from core.runtime.units import counted, short
from sweeps.search.results import Results
from sweeps.search.spec import Search
from sweeps.studies.study import CONFIRM, study_name


def rows(name: str, search: Search, out: Path) -> list[dict[str, Any]]:
    """A search's rows of `ablate list`, one for each size."""
    rows = []
    for size in ("full", *search.sizes):
        edition = search.sized(size)
        results = Results.load(out / study_name(name, size))
        trained = len(results.configurations) if results else 0
        confirmed = (out / study_name(study_name(name, size), CONFIRM)).is_dir()
        so_far = (
            f"{counted(trained, 'configuration')} trained" + (", confirmed" if confirmed else "")
            if trained
            else "not run"
        )
        budget = edition.budget
        said = counted(budget.trials, "configuration") if budget.trials else f"{short(budget.tokens or 0)} tokens"
        said += f" for each {edition.compare}" if edition.compare else ""
        rows.append({"name": name, "size": size, "question": edition.question, "budget": said, "so_far": so_far})
    return rows


def in_short(row: dict[str, Any]) -> Text:
    """A row's budget and how much of it was trained."""
    return line(f"search, {row['budget']}, {row['so_far']}")
