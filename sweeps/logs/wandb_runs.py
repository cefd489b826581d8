"""Runs of W&B: a project on its servers, and folders of runs that were mirrored offline."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from core.errors import UserError
from core.records.log_rows import Log, LogRow
from sweeps.logs.tables import flat
from sweeps.tracking.wandb_log import records

STEP = "_step"


def read(source: str, pattern: str = "") -> Log:
    """The runs of "wandb:ENTITY/PROJECT": a row for each history row, with the run's config, name, group and state.

    Raises UserError where W&B isn't installed, nobody is logged in, or there is no such project.
    """
    try:
        import wandb
    except ImportError:
        raise UserError("reading W&B takes the package wandb: pip install wandb") from None
    project = source.removeprefix("wandb:")
    try:
        runs = list(wandb.Api().runs(project))
        rows = [row for run in runs for row in _history(run)]
    except (wandb.Error, ValueError) as error:
        raise UserError(f"W&B has no runs of {project} for you: {str(error).splitlines()[0]}") from None
    return Log(source, tuple(rows), STEP, "state")


def _history(run: Any) -> Iterator[LogRow]:
    own = {**dict(flat(dict(run.config))), "name": run.name, "group": run.group, "state": run.state, "id": run.id}
    for row in run.scan_history():
        yield LogRow(f"W&B run {run.name}, step {row.get(STEP)}", {**own, **dict(flat(dict(row)))})


def read_offline(source: str, pattern: str = "") -> Log:
    """The runs in `run-*.wandb` files below a folder; a run that was gone on with has several, which are read together.

    Raises UserError for a file that is no log of W&B.
    """
    rows: list[LogRow] = []
    for path in sorted(Path(source).rglob("run-*.wandb")):
        rows += _offline(path)
    return Log(source, tuple(rows), STEP)


def _offline(path: Path) -> list[LogRow]:
    own: dict[str, Any] = {}
    history: list[Mapping[str, Any]] = []
    for record in records(path):
        if record.HasField("run"):
            run = record.run
            own |= {"name": run.display_name or run.run_id, "group": run.run_group, "id": run.run_id}
            own |= _items(run.config.update)
        elif record.HasField("config"):
            own |= _items(record.config.update)
        elif record.HasField("history"):
            history.append({STEP: record.history.step.num, **_items(record.history.item)})
    return [LogRow(f"{path.name}, step {row[STEP]}", {**own, **row}) for row in history]


def _items(items: Any) -> dict[str, Any]:
    """Keys and values of a record, nested keys joined by dots; W&B's own settings are left out."""
    content: dict[str, Any] = {}
    for item in items:
        key = ".".join(item.nested_key) if item.nested_key else item.key
        if not key.startswith("_wandb"):
            content[key] = json.loads(item.value_json)
    return dict(flat(content))
