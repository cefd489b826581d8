"""A PostgreSQL server of one's own: started, stopped and crashed at will."""

import contextlib
import os
import pwd
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

PASSWORD = "hunter2-and-3"


def binaries() -> Path | None:
    """Where this machine's newest PostgreSQL server lies."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    on_path = shutil.which("initdb")
    return found[-1].parent if found else Path(on_path).parent if on_path else None


def missing() -> str | None:
    """Why there can be no server here; None where there can."""
    if binaries() is None:
        return "no PostgreSQL server is installed (Debian: apt-get install postgresql)"
    if os.getuid() == 0 and _account() is None:
        return "PostgreSQL doesn't run as root, and there is no user 'postgres' or 'nobody'"
    return None


def _account() -> str | None:
    known = {entry.pw_name for entry in pwd.getpwall()}
    return next((name for name in ("postgres", "nobody") if name in known), None)


def free_port() -> int:
    """A port that nobody listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Postgres:
    """A server on a free port of 127.0.0.1, with a password, in a folder that only its account can read."""

    def __init__(self, place: Path, connections: int = 120) -> None:
        self.place, self.data, self._connections = place, place / "data", connections
        self.port = free_port()
        password = place / "password"
        password.write_text(PASSWORD)
        if os.getuid() == 0:
            shutil.chown(place, _account())
            shutil.chown(password, _account())
        self._run("initdb", "-D", self.data, "-U", "ablate", "-A", "scram-sha-256", "--pwfile", password, "-E", "UTF8")

    def url(self, database: str) -> str:
        """Of a database, with the password."""
        return f"postgresql://ablate:{PASSWORD}@127.0.0.1:{self.port}/{database}"

    def start(self) -> None:
        options = f"-p {self.port} -h 127.0.0.1 -k {self.place} -c max_connections={self._connections} -c fsync=off"
        self._run("pg_ctl", "-D", self.data, "-w", "-t", "30", "-l", self.place / "log", "-o", options, "start")

    def stop(self, mode: str = "fast") -> None:
        """mode "immediate" is a crash: the next start recovers."""
        self._run("pg_ctl", "-D", self.data, "-w", "-m", mode, "stop")

    def create(self, database: str) -> str:
        """A new database's URL."""
        environment = {"PGPASSWORD": PASSWORD}
        host = ("-h", "127.0.0.1", "-p", str(self.port), "-U", "ablate")
        self._run("createdb", *host, database, environment=environment)
        return self.url(database)

    def _run(self, program: str, *arguments: object, environment: dict[str, str] | None = None) -> None:
        binary = binaries()
        assert binary is not None
        command = [str(binary / program), *map(str, arguments)]
        if os.getuid() == 0:
            command = ["runuser", "-u", str(_account()), "-p", "--", *command]
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE if program != "pg_ctl" else subprocess.DEVNULL,  # the server would keep the pipe
            cwd=self.place,
            env={**os.environ, **(environment or {})},
            timeout=60,
        )
        assert done.returncode == 0, f"{program}: {(done.stderr or b'see its log').decode()}"


@contextlib.contextmanager
def server(connections: int = 120) -> Iterator[Postgres]:
    """A running server, gone at the end. connections: at the most, three of which are kept for administrators."""
    # Not below pytest's own folder: no other account may enter that one, and socket paths are short.
    place = Path(tempfile.mkdtemp(prefix="ablate-pg-", dir="/tmp"))
    try:
        postgres = Postgres(place, connections)
        postgres.start()
        try:
            yield postgres
        finally:
            with contextlib.suppress(AssertionError):  # a test may have left it stopped
                postgres.stop("immediate")
    finally:
        shutil.rmtree(place)


@contextlib.contextmanager
def pooled(url: str) -> Iterator[str]:
    """A database through pgbouncer, which gives each transaction any of two connections; the URL."""
    place, port = Path(tempfile.mkdtemp(prefix="ablate-pool-", dir="/tmp")), free_port()
    account, name = _account() if os.getuid() == 0 else None, url.rpartition("/")[2]
    server = url.rpartition("@")[2].partition("/")[0].partition(":")
    (place / "ini").write_text(
        f"[databases]\n{name} = host={server[0]} port={server[2]} user=ablate password={PASSWORD}\n"
        f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir = {place}\nauth_type = any\n"
        f"pool_mode = transaction\ndefault_pool_size = 2\nlogfile = {place}/log\npidfile = {place}/pid\n"
    )
    if account:
        for path in (place, place / "ini"):
            shutil.chown(path, account)
    command = ["pgbouncer", "-q", str(place / "ini")]
    process = subprocess.Popen(["runuser", "-u", account, "--", *command] if account else command)
    try:
        until = time.monotonic() + 10
        while time.monotonic() < until:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.05)
        yield f"postgresql://ablate@127.0.0.1:{port}/{name}"
    finally:
        process.terminate()
        process.wait()
        shutil.rmtree(place)


@contextlib.contextmanager
def served(url: str, port: int | None = None) -> Iterator[str]:
    """A proxy of a database in a process of its own; its address."""
    command = [sys.executable, "-m", "ablations", "storage", "serve", "--port", str(port or free_port())]
    process = subprocess.Popen(command, env={**os.environ, "ABLATE_STORAGE": url}, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        word, address = process.stdout.readline().split()
        assert word == "serving"
        yield address
    finally:
        process.terminate()
        process.wait()
