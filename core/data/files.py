"""Data files of a folder and their reading: each read returns the content or raises one line that names the file."""

import os
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path

from core.data.splits import roles
from core.errors import UserError

# What a file begins with that holds no text; Windows' Unicode text is some, but not in UTF-8.
NO_TEXT = {
    b"\x1f\x8b\x08": "is compressed (gzip): unpack it",
    b"\x28\xb5\x2f\xfd": "is compressed (zstd): unpack it",
    b"\xfd7zXZ\0": "is compressed (xz): unpack it",
    b"BZh": "is compressed (bzip2): unpack it",
    b"PK\x03\x04": "is an archive (zip): unpack it",
    b"PAR1": "is parquet: let its name end in .parquet",
    b"\xff\xfe": "is UTF-16 or UTF-32: save it as UTF-8",
    b"\xfe\xff": "is UTF-16: save it as UTF-8",
    b"\x93NUMPY": "is a NumPy array: token shards are read by data.corpus=tokens:PATH",
    b"%PDF-": "is PDF: write its text into a .txt",
    b"\x89PNG": "is an image (PNG): take it away",
    b"\0\x05\x16\x07": "is what macOS keeps of another file (AppleDouble): take it away",
    b"SQLite format 3\0": "is a database (SQLite): write its text into a .txt",
}
BOM = b"\xef\xbb\xbf"
LONGEST_START = max(map(len, NO_TEXT))


def locate(corpus: str, argument: str, absent: str) -> Path:
    """The file or folder that a corpus names. Raises UserError where there is none; absent: what it then says of the name."""
    path = Path(os.path.expanduser(argument))
    try:
        argument.encode()
        there = bool(argument) and path.exists()
    except (OSError, ValueError) as error:  # too long, not to be looked at; a NUL; no Unicode
        said = error.strerror if isinstance(error, OSError) else "no path that can be written down"
        raise UserError(f"data.corpus={corpus}:{argument} can't be opened: {said}") from None
    if not there:
        raise UserError(f"data.corpus={corpus}:{argument}: '{argument}' {absent}")
    if path.is_file() and path.name.startswith("."):
        raise UserError(f"data.corpus={corpus}:{argument}: dot files are no data; rename it if this one is")
    return path


def locate_file(corpus: str, argument: str) -> Path:
    """The file of rows that a corpus names. Raises UserError where it is none, and for one that is named as held out."""
    absent = "is no file; name a .jsonl of pairs"
    path = locate(corpus, argument, absent)
    if not path.is_file():
        raise UserError(f"data.corpus={corpus}:{argument}: '{argument}' {absent}")
    roles(f"{corpus}:{argument}", [path.name])
    return path


def find(root: Path, suffixes: Collection[str], beside: Collection[str] = ()) -> tuple[list[Path], Counter[str]]:
    """Files of those suffixes (in any case) in a folder and the folders in it, in the order of their names; and how many
    others were passed over, by what they are. Of a file, itself.

    beside: names and suffixes of what belongs to the data without being any. Dot files, and all in dot folders, are no data.
    Linked folders are entered once. Raises UserError for a folder that can't be looked into and a link that leads nowhere.
    """
    if root.is_file():
        return [root], Counter()
    found, passed = [], Counter[str]()
    for path in _walk(root):
        if any(part.startswith(".") for part in path.relative_to(root).parts):
            passed["dot files"] += 1
        elif path.suffix.lower() in suffixes:
            if not path.is_file():
                _check_link(path)
                passed["files of other kinds"] += 1
                continue
            found.append(path)
        elif path.name not in beside and path.suffix not in beside:
            passed["files of other kinds"] += 1
    return sorted(found), passed


def _walk(root: Path) -> Iterator[Path]:
    seen = set()
    for folder, folders, names in os.walk(root, onerror=_refuse, followlinks=True):
        real = os.path.realpath(folder)
        folders[:] = [] if real in seen else sorted(folders)
        if real not in seen:
            yield from (Path(folder, name) for name in names)
        seen.add(real)


def _refuse(error: OSError) -> None:
    raise UserError(f"{error.filename} can't be read: {error.strerror}") from None


def _check_link(path: Path) -> None:
    if path.is_symlink() and not path.exists():
        raise UserError(f"{path} is a link to nothing: remove it, or bring back {os.readlink(path)}")


def read(path: Path) -> bytes:
    """Read a file. Raises UserError."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} can't be read: {error.strerror}") from None


def read_text(path: Path) -> bytes:
    """A text's bytes, without the mark that some editors put before UTF-8. Raises UserError for what is no text."""
    content = read(path)
    check_start(path, content)
    return content.removeprefix(BOM)


def lines(path: Path) -> Iterator[bytes]:
    """The same line by line, as they are read."""
    try:
        with path.open("rb") as file:
            start = file.read(LONGEST_START)
            check_start(path, start)
            file.seek(len(BOM) if start.startswith(BOM) else 0)
            yield from file
    except OSError as error:
        raise UserError(f"{path} can't be read: {error.strerror}") from None


def check_start(path: Path, start: bytes, least: int = 2) -> None:
    """Refuse a file that begins as something else does. least: bytes that say so; of tokens three, for two may be any."""
    for known, said in NO_TEXT.items():
        if len(known) >= least and start.startswith(known):
            raise UserError(f"{path} {said}")
