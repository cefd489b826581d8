"""Count of the workers that died of a run, kept in its folder: across restarts and storages."""

import itertools
import json
from pathlib import Path

from optuna.trial import FrozenTrial

from core.records.run_record import write_atomically
from core.runtime import json_files

LOSSES_FILE = "losses.json"


def note(folder: Path, trial: FrozenTrial, step: int | None = None) -> int:
    """Count the death of a trial's worker, once however often it is noted. step: of the checkpoint that is left.

    Returns how many there were since the run last came further: one that gets on, however slowly, isn't given up.
    """
    own = trial.user_attrs
    death = f"process {own.get('pid')} of {own.get('host')}, which began at {trial.datetime_start}"
    deaths = _deaths(folder)
    if death not in (known for known, _ in deaths):
        deaths.append((death, step))
        write_atomically(folder / LOSSES_FILE, json.dumps(deaths, indent=2) + "\n")
    return sum(1 for _ in itertools.takewhile(lambda each: each[1] == deaths[-1][1], reversed(deaths)))


def forget(folder: Path) -> None:
    """Count anew from here on."""
    (folder / LOSSES_FILE).unlink(missing_ok=True)


def _deaths(folder: Path) -> list[tuple[str, int | None]]:
    try:
        found = json_files.read(folder / LOSSES_FILE)
    except (FileNotFoundError, json_files.DamagedFileError):
        return []
    pairs = found if isinstance(found, list) else []
    return [(str(pair[0]), pair[1]) for pair in pairs if isinstance(pair, list) and len(pair) == 2]
