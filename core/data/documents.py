"""Text as documents, and which of them are held out."""

import hashlib
import json
import os
import sysconfig
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from core.data import files
from core.data.fetch import shakespeare_folder
from core.data.splits import Origin, boundary, hold_back, role, roles
from core.errors import UserError
from core.runtime.json_files import once

PLAIN = {".txt", ".md", ".py", ".rst", ".tex"}
ROWS = {".jsonl", ".ndjson"}
TABLES = {*ROWS, ".parquet"}
SKIPPED_FOLDERS = {"encodings", "test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
HF_DOCUMENTS = 10_000
EMPTY = "without text"  # rows of nothing, which are passed over


@dataclass(frozen=True)
class Documents:
    """Texts by name, in two parts. digest: equal only for equal texts in equal order and parts."""

    train: dict[str, bytes]
    validation: dict[str, bytes]
    digest: str
    origin: Origin = field(default_factory=Origin)


def split(
    documents: Mapping[str, bytes],
    name: str,
    share: float | None = None,
    *,
    held: Mapping[str, str] | None = None,
    sources: Sequence[str] = (),
    passed: Mapping[str, int] | None = None,
) -> Documents:
    """Hold out the documents that are named, or about a tenth by size (share): whole ones, and the end of one too large.

    held: those to hold out, each with its file's name. sources: files that all are from; passed: how many were passed over,
    by kind. Raises UserError where no text is left to train on, or none is held out.
    """
    passed = Counter(passed or {}) + Counter({EMPTY: sum(not content.strip() for content in documents.values())})
    documents = {key: content for key, content in documents.items() if content.strip()}
    if not documents:
        counts = ", ".join(f"{kind} {n}" for kind, n in sorted(passed.items()))
        raise UserError(
            f"data.corpus={name} has no text: 0 documents with anything in them{counts and f' (passed over: {counts})'}"
        )
    train, validation = _parted(documents, share, held or ())
    if not train or not validation:
        size = [sum(map(len, part.values())) for part in (train, validation)]
        raise UserError(
            f"data.corpus={name} has {size[0]} bytes to train on and {size[1]} held out: use more text, or fill the files"
        )
    digest = hashlib.sha256()
    for part in (train, validation):
        for key, content in part.items():
            digest.update(os.fsencode(f"{key}\0{len(content)}\0") + content)
        digest.update(b"\0\0")
    origin = Origin(
        files=sources or list(documents),
        held=list(dict.fromkeys(held.values())) if held else list(validation),
        passed=passed,
        named=bool(held),
    )
    return Documents(train, validation, digest.hexdigest()[:16], origin)


def _parted(
    documents: Mapping[str, bytes], share: float | None, named: Collection[str]
) -> tuple[dict[str, bytes], dict[str, bytes]]:
    if named:
        back = {key: len(documents[key]) for key in documents if key in named}
    else:
        # By hash of the name: adding a document to the corpus moves no other between the parts.
        rank = sorted(documents, key=lambda path: hashlib.sha256(os.fsencode(path)).digest())
        back = hold_back({key: len(documents[key]) for key in rank}, share)
    train, validation = dict[str, bytes](), dict[str, bytes]()
    for key, content in documents.items():
        cut = len(content) - back.get(key, 0)
        if 0 < cut < len(content):
            cut = boundary(content, cut)
            validation[f"{key} (tail)"] = content[cut:]
        elif not cut:
            validation[key] = content
        if cut:
            train[key] = content[:cut]
    return train, validation


def _stdlib(argument: str, share: float | None = None) -> Documents:
    root = Path(sysconfig.get_paths()["stdlib"])
    paths = (path for path in root.rglob("*.py") if not SKIPPED_FOLDERS & set(path.relative_to(root).parts))
    return split({path.relative_to(root).as_posix(): files.read(path) for path in sorted(paths)}, "stdlib", share)


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


def read_jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line numbers and objects of a JSON-lines file; blank lines are skipped. Raises UserError that names the line."""
    for number, line in enumerate(files.lines(path), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode(), object_pairs_hook=once)
        except UnicodeDecodeError as error:
            raise UserError(f"{path}:{number} isn't UTF-8 (byte {error.start} of the line)") from None
        except RecursionError:
            raise UserError(f"{path}:{number} is not JSON: nested too deeply") from None
        except ValueError as error:
            raise UserError(f"{path}:{number} is not JSON: {error}") from None
        if not isinstance(row, dict):
            raise UserError(f'{path}:{number} must be an object, such as {{"text": "..."}}')
        yield number, row


def text_of(row: Mapping[str, Any], key: str, path: Path, number: int, hint: str = "") -> str:
    """A row's text under a key. Raises UserError where it has none; hint: what would do too."""
    if key not in row:
        raise UserError(f'{path}:{number} has no text under "{key}"; its keys are {", ".join(row) or "none"}{hint}')
    value = row[key]
    if not isinstance(value, str):
        raise UserError(f'{path}:{number} has no text under "{key}", but {json.dumps(value, default=str)[:40]}{hint}')
    encoded(value, f"{path}:{number}")
    return value


def _string(row: Mapping[str, Any], key: str, path: Path, number: int) -> bytes:
    """The same as bytes; null is no text, as in a table."""
    return b"" if key in row and row[key] is None else text_of(row, key, path, number).encode()


def encoded(text: str, where: str) -> bytes:
    """A text in UTF-8. Raises UserError for half a character, which JSON can write; where: what an error calls the text."""
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{where} isn't UTF-8 text: {text[error.start]!a} is half a character; write it whole"
        ) from None


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


def _shakespeare(argument: str, share: float | None = None) -> Documents:
    folder = shakespeare_folder()
    if not folder.is_dir():
        raise UserError("data.corpus=shakespeare isn't on this machine yet: ablate data get shakespeare")
    paths, passed = files.find(folder, {".txt"})
    return split({path.name: files.read(path) for path in paths}, "shakespeare", share, passed=passed)


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


TEXTS: dict[str, Callable[..., Documents]] = {
    "stdlib": _stdlib, "text": _text, "shakespeare": _shakespeare, "hf": _hf,
}  # fmt: skip
