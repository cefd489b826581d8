"""Slurm requests: options of the command line over the defaults of a small file."""

import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from core.errors import UserError
from core.registry import nearest
from sweeps.runs import slurm_jobs

CONFIG_VARIABLE = "ABLATE_CONFIG"
PARALLELISM = 64
UNITS_S = {"d": 86400, "h": 3600, "m": 60, "s": 1}
KEY = re.compile(r"[a-z][a-z0-9-]*")
# What the script sets, or can't work with.
OWN_KEYS = (
    "array", "chdir", "cpus-per-run", "error", "gpus-per-run", "job-name", "no-requeue", "nodes", "ntasks",
    "ntasks-per-core", "ntasks-per-gpu", "ntasks-per-node", "ntasks-per-socket", "open-mode", "output", "parsable",
    "requeue", "signal", "test-only", "wait", "wrap",
)  # fmt: skip
FIELD_KEYS = ("partition", "account", "qos", "time")
# Options of sbatch that ask for the same thing; gres does where it names GPUs, or shares of them.
OF_GPUS = re.compile(r"\b(gpu|shard|mps)\b", re.IGNORECASE)
GPUS = (
    "gpus",
    "gpus-per-node",
    "gpus-per-socket",
    "gpus-per-task",
    "gres",
    "tres-per-job",
    "tres-per-node",
    "tres-per-task",
)
CPUS = ("cpus-per-gpu", "cpus-per-task")
MEMORY = ("mem", "mem-per-cpu", "mem-per-gpu")

# A command that fails inside a file that is sourced, or in a function, is theirs to judge: its own status counts, as a line.
WATCHED = (
    """trap 'status=$?; if [ "${#BASH_SOURCE[@]}" -eq 1 ]; then """
    """echo "setup: $BASH_COMMAND: failed with status $status, and the job ends" >&2; exit "$status"; fi' ERR""",
)
UNWATCHED = ("trap - ERR", "set +eu")


@dataclass(frozen=True)
class Request:
    """Options of one `sbatch`. gpus_per_run: None leaves it to the partition, 0 asks for none. cpus_per_run: None leaves
    it to Slurm. sbatch: further options by name; "" = without a value. setup: lines of shell that each task runs first,
    such as "module load cuda"; one that fails ends the job. wrapper: of Python, such as a container's start."""

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    time: str | None = None
    gpus_per_run: int | None = None
    cpus_per_run: int | None = None
    array_parallelism: int = PARALLELISM
    sbatch: Mapping[str, str] = field(default_factory=dict)
    setup: Sequence[str] = ()
    wrapper: str | None = None

    def __post_init__(self) -> None:
        for name in (*FIELD_KEYS, "wrapper"):
            value = getattr(self, name)
            if value is not None:
                _check_text(name, value)
        if self.time is not None:
            seconds(self.time)
        for name, least in (("gpus_per_run", 0), ("cpus_per_run", 1), ("array_parallelism", 1)):
            number = getattr(self, name)
            if number is not None and (isinstance(number, bool) or not isinstance(number, int) or number < least):
                option = name.replace("_", "-")
                raise UserError(f"{option} must be a whole number of at least {least}, not {number!r}")
        for key, value in self.sbatch.items():
            _check_option(key, value)
        for what, names in self.asked.items():
            if len(names) > 1:  # Slurm takes either, by its version, and says nothing
                raise UserError(f"sbatch: {' and '.join(names)} both ask for {what}; leave one of them out")

    @property
    def asked(self) -> dict[str, list[str]]:
        """The options that ask for GPUs, for CPUs and for memory."""
        return {
            "GPUs": [*(["gpus-per-run"] if self.gpus_per_run is not None else []), *self.of_gpus],
            "CPUs": [*(["cpus-per-run"] if self.cpus_per_run is not None else []), *_given(self.sbatch, CPUS)],
            "memory": _given(self.sbatch, MEMORY),
        }

    @property
    def of_gpus(self) -> list[str]:
        """The options under `sbatch` that ask for GPUs."""
        given = _given(self.sbatch, GPUS)
        return [key for key in given if key.startswith("gpus") or OF_GPUS.search(self.sbatch[key])]

    def over(self, options: Mapping[str, Any]) -> "Request":
        """The same with what the command line says over it; its `sbatch` options replace what asks for the same."""
        given = {name: value for name, value in options.items() if value is not None}
        alone = Request(**{name: given[name] for name in ("sbatch", "gpus_per_run", "cpus_per_run") if name in given})
        replaced = [name for what, names in alone.asked.items() if names for name in self.asked[what]]
        for field_name, what in (("gpus_per_run", "GPUs"), ("cpus_per_run", "CPUs")):
            if alone.asked[what]:
                given.setdefault(field_name, None)
        kept = {key: value for key, value in self.sbatch.items() if key not in replaced}
        return replace(self, **(given | {"sbatch": {**kept, **alone.sbatch}}))

    def setup_lines(self) -> str:
        """The script's part that runs the setup, and ends the job with a word at the first command in it that fails."""
        return "\n".join((*WATCHED, *self.setup, *UNWATCHED)) if self.setup else ""

    def wrapped(self, python: str) -> str:
        """Command by which the script starts Python."""
        return f"{self.wrapper} {python}" if self.wrapper else python


def defaults(environment: Mapping[str, str] = os.environ) -> Request:
    """The defaults: from the file that $ABLATE_CONFIG names, else from ablate/slurm.toml in the user's config folder.

    Raises UserError for a file that can't be read, and for keys that mean nothing.
    """
    if named := environment.get(CONFIG_VARIABLE):
        path = Path(os.path.expanduser(named))
        if not path.is_file():
            raise UserError(f"{CONFIG_VARIABLE}={named}: there is no such file")
    else:
        path = Path(os.path.expanduser(environment.get("XDG_CONFIG_HOME") or "~/.config")) / "ablate" / "slurm.toml"
        if not path.is_file():
            return Request()
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UserError(f"{path} can't be read as TOML: {error}") from None
    known = [entry.name for entry in fields(Request)]
    for key in content:
        if key not in known:
            raise UserError(f"{path}: unknown key '{key}': {nearest(key, known)}")
    for key in (*FIELD_KEYS, "wrapper"):
        if key in content and not isinstance(content[key], str):
            raise UserError(f"{path}: {key} must be text in quotes, not {content[key]!r}")
    setup, options = content.get("setup", []), content.get("sbatch", {})
    if not isinstance(setup, list) or not all(isinstance(line, str) for line in setup):
        raise UserError(f'{path}: setup must be a list of lines of shell, such as ["module load cuda"]')
    if not isinstance(options, dict) or any(isinstance(value, dict | list) for value in options.values()):
        raise UserError(f'{path}: sbatch must be a table of options, such as [sbatch] and below it mem = "32G"')
    content["sbatch"] = {key: str(value) for key, value in options.items()}
    try:
        return Request(**content)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def parse_options(arguments: Sequence[str]) -> dict[str, str]:
    """`--sbatch key=value` options by key. Raises UserError for any other form."""
    options: dict[str, str] = {}
    for argument in arguments:
        key, separator, value = argument.partition("=")
        if not separator or not KEY.fullmatch(key):
            raise UserError(
                f"--sbatch '{argument}' is not an option: write key=value, such as mem=32G (key= where it takes no value)"
            )
        if key in options:
            raise UserError(f"--sbatch {key} is given twice, as {options[key]} and {value}: leave one of them out")
        options[key] = value
    return options


def _given(options: Mapping[str, str], names: Sequence[str]) -> list[str]:
    return [name for name in names if name in options]


def seconds(time: str) -> int:
    """A time limit in seconds: "90m", "1d12h", or as Slurm writes it ("4:00:00", "1-12:00:00", minutes alone)."""
    units = re.fullmatch(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?", time)
    if units:
        total = sum(int(number or 0) * UNITS_S[unit] for number, unit in zip(units.groups(), "dhms", strict=True))
    else:
        total = int(slurm_jobs.seconds(time) or 0)
    if not total:
        raise UserError(f"time: '{time}' is not a time limit: write 4h, 90m, 1d12h or hours:minutes:seconds")
    return total


def clock(time: str) -> str:
    """A time limit as Slurm writes it."""
    minutes, second = divmod(seconds(time), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours // 24}-{hours % 24:02}:{minute:02}:{second:02}"


def _check_option(key: str, value: str) -> None:
    if not KEY.fullmatch(key):
        raise UserError(f"sbatch: '{key}' is not an option's name: write it without dashes before it, such as mem")
    known = (*FIELD_KEYS, *OWN_KEYS, *GPUS, *CPUS, *MEMORY)
    if key not in known and (len(key) == 1 or any(name.startswith(key) for name in known)):
        raise UserError(f"sbatch: '{key}' is short for another option: write its whole name, such as cpus-per-task")
    if key in FIELD_KEYS:
        raise UserError(f"sbatch: {key} has an option of its own: --{key}")
    if key in OWN_KEYS:
        raise UserError(f"sbatch: {key} is set by the script itself; leave it out")
    _check_text(f"sbatch {key}", value)


def _check_text(name: str, value: str) -> None:
    if not value.isprintable():
        raise UserError(f"{name}: {value!r} has characters that can't stand in a batch script")
    if not value and not name.startswith("sbatch"):
        raise UserError(f"{name}: it is empty; leave it out")
