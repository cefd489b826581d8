"""Trials of Optuna's studies as runs."""

from pathlib import Path
from typing import Any

from core.errors import UserError
from core.records.log_rows import Log, LogRow
from core.runtime.paths import expanded
from sweeps.storage.storage import open_storage

STEP = "step"


def read(source: str, pattern: str = "") -> Log:
    """A row for each reported value of each trial, and one for its result. source: "optuna:URL", of all studies there.

    Columns: study, trial, state; parameters and user attributes by their names; value (value_0, value_1 of several
    objectives); step, after the intermediate values. Raises UserError for a storage that can't be opened.
    """
    url = source.removeprefix("optuna:")
    for form in ("journal:", "sqlite:///"):  # opening would make an empty one
        if url.startswith(form) and not Path(expanded(url.removeprefix(form))).is_file():
            raise UserError(f"{source}: there is no such file")
    storage = open_storage(url)
    rows: list[LogRow] = []
    for study in storage.get_all_studies():
        for trial in storage.get_all_trials(study._study_id, deepcopy=False):
            place = f"study {study.study_name}, trial {trial.number}"
            own: dict[str, Any] = {**trial.user_attrs, **trial.params}
            own |= {"study": study.study_name, "trial": trial.number, "state": trial.state.name.lower()}
            for step, value in sorted(trial.intermediate_values.items()):
                rows.append(LogRow(f"{place}, step {step}", {**own, STEP: step, "value": value}))
            values = trial.values or [None] * len(study.directions)
            named = {"value": values[0]} if len(values) == 1 else {f"value_{n}": v for n, v in enumerate(values)}
            end = max(trial.intermediate_values, default=-1) + 1
            rows.append(LogRow(place, {**own, STEP: end, **named}))
    if not rows:
        raise UserError(f"{source} holds no trial")
    return Log(source, tuple(rows), STEP, "state")
