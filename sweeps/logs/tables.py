"""Tables of runs: CSV, JSON lines and Parquet, with a row for a run or for a step of one."""

import csv
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from core.errors import UserError
from core.records.log_rows import Log, LogRow


def read_csv(source: str, pattern: str = "") -> Log:
    """A file with a header and comma-separated values (.tsv: tabs). Raises UserError for a row of another length."""
    path = Path(source)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = csv.reader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",", strict=True)
            header = next(lines, [])
            _check_header(path, header)
            rows = []
            for line in lines:
                if not line:
                    continue
                if len(line) != len(header):
                    raise UserError(f"{path}, line {lines.line_num}: {len(line)} values under {len(header)} columns")
                rows.append(LogRow(f"{path.name}, line {lines.line_num}", dict(zip(header, line, strict=True))))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"can't read {path}: {error}") from None
    return Log(source, tuple(rows))


def _check_header(path: Path, header: list[str]) -> None:
    twice = next((name for name in header if header.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"{path}: two columns are called '{twice}': rename one")


def read_json_lines(source: str, pattern: str = "") -> Log:
    """A file with a JSON object on every line; nested keys are joined by dots."""
    path, rows = Path(source), []
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    rows.append(LogRow(f"{path.name}, line {number}", _object(path, number, line)))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"can't read {path}: {error}") from None
    return Log(source, tuple(rows))


def _object(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        content = json.loads(line, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}, line {number} is no JSON: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f'{path}, line {number} must be a JSON object of columns, such as {{"seed": 0}}')
    columns = list(flat(content))
    names = [name for name, _ in columns]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"{path}, line {number}: '{twice}' is there twice, nested and with dots: rename one")
    return dict(columns)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object of its pairs. Raises ValueError for a key that is there twice."""
    names = [name for name, _ in pairs]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ValueError(f"the key '{twice}' is there twice")
    return dict(pairs)


def flat(content: dict[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    """Nested keys joined by dots, with their values."""
    for key, value in content.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def read_parquet(source: str, pattern: str = "") -> Log:
    """A Parquet file. Raises UserError where pyarrow isn't installed."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise UserError("reading Parquet takes the package pyarrow: pip install pyarrow") from None
    path = Path(source)
    try:
        rows = parquet.read_table(path).to_pylist()
    except (OSError, pyarrow.ArrowException) as error:
        raise UserError(f"can't read {path}: {error}") from None
    return Log(source, tuple(LogRow(f"{path.name}, row {number}", row) for number, row in enumerate(rows, 1)))
