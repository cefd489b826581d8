"""How often workers died of a run, counted in its folder: across restarts of the sweep, and on whatever storage."""

import json
from pathlib import Path

from optuna.trial import FrozenTrial

from core import jsonfiles
from core.records import write_atomically

LOSSES_FILE = "losses.json"


def note(folder: Path, trial: FrozenTrial) -> int:
    """Count the death of a trial's worker, once however often it is noted, and return how many there were."""
    own = trial.user_attrs
    death = f"process {own.get('pid')} of {own.get('host')}, which began at {trial.datetime_start}"
    deaths = _deaths(folder)
    if death not in deaths:
        deaths.append(death)
        write_atomically(folder / LOSSES_FILE, json.dumps(deaths, indent=2) + "\n")
    return len(deaths)


def forget(folder: Path) -> None:
    """Count anew from here on."""
    (folder / LOSSES_FILE).unlink(missing_ok=True)


def _deaths(folder: Path) -> list[str]:
    try:
        found = jsonfiles.read(folder / LOSSES_FILE)
    except (FileNotFoundError, jsonfiles.DamagedFileError):
        return []
    return [str(death) for death in found] if isinstance(found, list) else []
