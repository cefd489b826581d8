"""Whatever happens to a sealed folder is seen, and nobody else's seal is taken."""

import errno
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from core.errors import UserError
from core.runtime.retry import OutOfPatienceError
from core.training import seals
from core.training.seals import PIECE, SEAL, SealError, damage, digest, hashing, read_seal, seal


def flip(path: Path, place: int = -1) -> None:
    """Turn one bit over."""
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "runs" / "step-5"
    (place / "deep").mkdir(parents=True)
    (place / "one.pt").write_bytes(os.urandom(5000))
    (place / "deep" / "two.pt").write_bytes(os.urandom(300))
    (place / "empty").touch()
    seal(place, {"step": 5}, {"one.pt": digest(place / "one.pt", sync=True)})
    return place


def found(folder: Path, share: tuple[int, int] = (0, 1)) -> str | None:
    try:
        return damage(folder, read_seal(folder)["files"], share)
    except SealError as error:
        return str(error)


def test_a_sealed_folder_is_whole(folder: Path) -> None:
    assert found(folder) is None and read_seal(folder)["step"] == 5
    assert read_seal(folder)["files"].keys() == {"one.pt", "deep/two.pt", "empty"}


DAMAGE: list[tuple[Callable[[Path], object], str]] = [
    (lambda f: flip(f / "one.pt", 77), "one.pt is not what was saved"),
    (lambda f: os.truncate(f / "one.pt", 100), "one.pt has 100 bytes, not 5000"),
    (lambda f: os.truncate(f / "deep" / "two.pt", 0), "deep/two.pt has 0 bytes, not 300"),
    (lambda f: (f / "one.pt").unlink(), "one.pt is missing"),
    (lambda f: (f / "more_optim_states.pt").touch(), "'more_optim_states.pt' was added to it"),
    (lambda f: ((f / "one.pt").rename(f.parent / "x"), (f / "one.pt").symlink_to(f.parent / "x")), "'one.pt' is no file"),
    (lambda f: os.mkfifo(f / "pipe"), "'pipe' is no file"),
    (lambda f: (f / SEAL).unlink(), "it has no seal"),
    (lambda f: (f.rename(f.parent / "x"), f.symlink_to(f.parent / "x")), "it has no seal"),
    (lambda f: os.truncate(f / SEAL, 50), "its seal can't be read"),
    (lambda f: os.truncate(f / SEAL, 0), "its seal can't be read"),
    (lambda f: (f / SEAL).write_bytes(b"\xff\x00"), "its seal can't be read"),
    (lambda f: (f / SEAL).write_text("[" * 100_000), "its seal can't be read"),
    (lambda f: (f / SEAL).write_text('{"said": {"files": []}, "key": 1, "mac": 2}'), "its seal can't be read"),
    (lambda f: (f / SEAL).write_text((f / SEAL).read_text().replace('"step": 5', '"step": 6')), "its seal was changed"),
]  # fmt: skip


@pytest.mark.parametrize(("act", "expected"), DAMAGE, ids=[text for _, text in DAMAGE])
def test_damage_is_seen(act: Callable[[Path], object], expected: str, folder: Path) -> None:
    act(folder)
    assert (found(folder) or "").startswith(expected)


def test_any_flipped_bit_of_a_seal_is_seen_or_changes_nothing(folder: Path) -> None:
    whole, said = (folder / SEAL).read_bytes(), read_seal(folder)
    for place in range(len(whole)):
        (folder / SEAL).write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        try:
            assert read_seal(folder) == said
        except SealError:
            continue
        assert whole[place : place + 1].isspace() or not whole[place : place + 1].isalnum()


def test_shares_cover_every_file(folder: Path) -> None:
    for name in ("one.pt", "deep/two.pt"):
        flip(folder / name)
        assert [found(folder, (rank, 2)) is None for rank in (0, 1)].count(False) == 1
        flip(folder / name)


def test_a_strangers_seal_is_none(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(seals.KEY_VARIABLE, str(tmp_path / "other" / "key"))
    assert found(folder) == f"it is signed with another key than {tmp_path / 'other' / 'key'}"
    text = (folder / SEAL).read_text()  # which key it says is nothing that is believed
    (folder / SEAL).write_text(text.replace('"key": "', f'"key": "{seals.key_name(seals.own_key())}", "was": "'))
    assert found(folder) == "its seal was changed"
    monkeypatch.setenv(seals.KEY_VARIABLE, str(tmp_path))
    with pytest.raises(SealError, match=r"there is no key that it could be signed with \(Is a directory"):
        read_seal(folder)


def test_pieces_are_hashed_apart(tmp_path: Path) -> None:
    path = tmp_path / "big"
    path.write_bytes(bytes(PIECE) + b"end")
    assert digest(path, sync=True) == digest(path) and digest(path)[0] == PIECE + 3
    first = digest(path)
    for place in (0, PIECE - 1, PIECE, PIECE + 2):
        flip(path, place)
        assert digest(path) != first
        flip(path, place)
    path.write_bytes(b"end" + bytes(PIECE))
    assert digest(path) != first


def test_files_are_hashed_as_they_are_written(tmp_path: Path) -> None:
    class Engine:
        def save(self, state_dict: bytes, path: str) -> None:
            Path(path).write_bytes(state_dict)

    engine = Engine()
    with hashing(engine, tmp_path) as digests:
        engine.save(b"one", str(tmp_path / "a"))
        engine.save(state_dict=b"two", path=str(tmp_path / "b"))
    assert digests == {name: seals.digest(tmp_path / name) for name in ("a", "b")}
    engine.save(b"three", str(tmp_path / "c"))
    assert "c" not in digests
    with pytest.raises(FileNotFoundError), hashing(engine, tmp_path):
        engine.save(b"", str(tmp_path / "no" / "folder"))


def test_a_key_that_is_none_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "home" / "key"
    monkeypatch.setenv(seals.KEY_VARIABLE, str(path))
    key = seals.own_key()
    assert len(key) == 32 and seals.own_key() == key and path.stat().st_mode & 0o777 == 0o600
    assert [entry.name for entry in path.parent.iterdir()] == ["key"] and key.hex() not in seals.key_name(key)
    path.chmod(0o640)
    assert seals.own_key() == key  # read once, whatever becomes of the file
    seals._known.clear()
    with pytest.raises(UserError, match=f"{path}, the key .* is not this user's alone: chmod 600"):
        seals.own_key()
    path.chmod(0o600)
    for content in (b"", path.read_bytes()[:20], b"\xff" * 64):
        path.write_bytes(content)
        with pytest.raises(UserError, match=f"{path} holds no key: delete it"):
            seals.own_key()


def test_whoever_makes_the_key_first_makes_everybodys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(seals.KEY_VARIABLE, str(tmp_path / "home" / "key"))
    start = threading.Barrier(16)

    def make(_: int) -> bytes:
        start.wait()
        return seals.own_key()

    with ThreadPoolExecutor(16) as pool:
        assert len(set(pool.map(make, range(16)))) == 1
    assert [entry.name for entry in (tmp_path / "home").iterdir()] == ["key"]


def test_the_key_lies_in_the_users_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(seals.KEY_VARIABLE)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    assert seals.key_file() == tmp_path / ".config" / "ablate" / "checkpoints.key"
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "x"))
    assert seals.key_file() == tmp_path / "x" / "ablate" / "checkpoints.key"


def test_a_key_that_is_out_of_reach_is_waited_for(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened, failures = Path.open, [errno.ESTALE, errno.EACCES]

    def away(path: Path, *arguments: object, **settings: object) -> object:
        if path == seals.key_file() and failures:
            raise OSError(failures.pop(), "away", str(path))
        return opened(path, *arguments, **settings)

    seals._known.clear()
    monkeypatch.setattr(Path, "open", away)
    monkeypatch.setattr(seals.Patience, "sleep", lambda self, seconds: None)
    assert found(folder) is None and not failures
    seals._known.clear()
    failures[:] = [errno.EIO] * 1000
    monkeypatch.setenv("ABLATE_PATIENCE_S", "0")
    with pytest.raises(OutOfPatienceError, match="away"):
        read_seal(folder)


def test_a_file_system_without_links_has_a_key_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, "no links")

    monkeypatch.setenv(seals.KEY_VARIABLE, str(tmp_path / "key"))
    monkeypatch.setattr(os, "link", refuse)
    assert len(seals.own_key()) == 32 and (tmp_path / "key").stat().st_mode & 0o777 == 0o600
    assert [entry.name for entry in tmp_path.iterdir() if entry.name != "checkpoint"] == ["key"]


def test_no_home_is_no_key_and_no_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv(seals.KEY_VARIABLE)
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    seals.check_key()
    with pytest.raises(OSError, match="there is no home directory"):
        seals.own_key()
