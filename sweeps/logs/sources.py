"""Sources of logs: which reader takes a path or a name."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from core.errors import UserError
from core.records.log_rows import Log
from core.registry import Registry, load

PATTERN = "{arm}/{seed}"


@dataclass(frozen=True)
class LogFormat:
    """A format of logs. takes: whether a source is of it. implementation: a function `(source, pattern) -> Log`, or its name,
    "module:function". title: as help and messages list it."""

    name: str
    title: str
    takes: Callable[[str], bool]
    implementation: Callable[[str, str], Log] | str


def _is_file(*suffixes: str) -> Callable[[str], bool]:
    return lambda source: Path(source).suffix.lower() in suffixes and ":" not in source.split("/")[0]


def _has(pattern: str) -> Callable[[str], bool]:
    return lambda source: Path(source).is_dir() and next(Path(source).rglob(pattern), None) is not None


BUILT_IN = (
    LogFormat("csv", "a .csv or .tsv file", _is_file(".csv", ".tsv"), "sweeps.logs.tables:read_csv"),
    LogFormat("parquet", "a .parquet file", _is_file(".parquet"), "sweeps.logs.tables:read_parquet"),
    LogFormat("json lines", "a .jsonl file", _is_file(".jsonl", ".ndjson"), "sweeps.logs.tables:read_json_lines"),
    LogFormat("tensorboard", "a folder of TensorBoard events", _has("*tfevents*"), "sweeps.logs.tensorboard:read"),
    LogFormat("wandb offline", "a W&B offline folder", _has("run-*.wandb"), "sweeps.logs.wandb_runs:read_offline"),
    LogFormat("wandb", "wandb:ENTITY/PROJECT", lambda source: source.startswith("wandb:"), "sweeps.logs.wandb_runs:read"),
    LogFormat("optuna", "optuna:STORAGE", lambda source: source.startswith("optuna:"), "sweeps.logs.optuna_trials:read"),
)  # fmt: skip
LOG_FORMATS: Registry[LogFormat] = Registry("log format", BUILT_IN)


def read_logs(source: str, pattern: str = PATTERN) -> Log:
    """The rows of a source. pattern: of the folders that event files lie in, with `{arm}` and `{seed}`.

    Raises UserError for a source that isn't there, is of no known format or can't be read.
    """
    found = next((each for each in LOG_FORMATS.entries() if each.takes(source)), None)
    if found is not None:
        log = load(found.implementation)(source, pattern)
        if not log.rows:
            raise UserError(f"{source} has no rows")
        return log
    forms = ", ".join(each.title for each in LOG_FORMATS.entries())
    if not Path(source).exists():
        raise UserError(f"{source}: there is no such file or folder; logs are {forms}")
    raise UserError(f"{source} is of no format that is known; logs are {forms}")
