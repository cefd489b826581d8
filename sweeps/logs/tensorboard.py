"""Scalars of TensorBoard's event files, a folder for each run."""

import re
from pathlib import Path
from typing import Any

from core.errors import UserError
from core.records.log_rows import Log, LogRow

STEP = "step"
EVENTS = "*tfevents*"


def read(source: str, pattern: str) -> Log:
    """A row for each step of each run. pattern: of a run's folder below the source: `{arm}/seed{seed}`.

    Events in several files of one folder, as a resumed run leaves them, are read together: of a step that comes again, the
    later one counts, as in TensorBoard. Raises UserError for a folder that doesn't fit the pattern.
    """
    root = Path(source)
    rows: list[LogRow] = []
    for folder in sorted({path.parent for path in root.rglob(EVENTS)}):
        place = folder.relative_to(root).as_posix()
        names = matched(place, pattern)
        scalars = _scalars(folder)
        for step in sorted(scalars):
            rows.append(LogRow(f"{place}, step {step}", {**names, STEP: step, **scalars[step]}))
    return Log(source, tuple(rows), STEP)


def matched(place: str, pattern: str) -> dict[str, str]:
    """The names that a pattern with `{NAME}` finds in a path. Raises UserError for a path of another form."""
    parts = re.split(r"\{(\w+)\}", pattern)
    names = parts[1::2]
    if len(set(names)) < len(names) or not names:
        raise UserError(f"--pattern {pattern} must name each part once, such as {{arm}}/seed{{seed}}")
    expression = "".join(f"(?P<{part}>[^/]+)" if place % 2 else re.escape(part) for place, part in enumerate(parts))
    found = re.fullmatch(expression, place)
    if found is None:
        raise UserError(f"the folder {place} doesn't fit {pattern}: give the form of your folders as --pattern")
    return found.groupdict()


def _scalars(folder: Path) -> dict[int, dict[str, float]]:
    try:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    except ImportError:
        raise UserError("reading TensorBoard events takes the package tensorboard: pip install tensorboard") from None
    events: Any = EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0})
    events.Reload()
    found: dict[int, dict[str, float]] = {}
    for tag in events.Tags()["scalars"]:
        for event in events.Scalars(tag):
            found.setdefault(event.step, {})[tag] = float(event.value)
    if tensors := [tag for tag in events.Tags()["tensors"] if events.Tensors(tag)[0].tensor_proto.dtype == 1]:
        for tag in tensors:  # how TensorFlow 2 and JAX write scalars
            for event in events.Tensors(tag):
                if len(event.tensor_proto.float_val) == 1:
                    found.setdefault(event.step, {})[tag] = float(event.tensor_proto.float_val[0])
    return found
