"""The page's server: on this machine alone, for whoever has the token, to be read and nothing else.

Below the page of a search is optuna-dashboard, where it is installed: on the same storage, behind the same token.

The token is in the address that the command prints. The first request with it sets a cookie and redirects, so that it leaves
the address bar; whatever else comes without it is refused. The Host header must name this machine, so that no other site's
name can be pointed at it.
"""

import functools
import hashlib
import importlib.util
import secrets
import socketserver
import warnings
from collections.abc import Callable, Iterable, Mapping
from hmac import compare_digest
from http.cookies import CookieError, SimpleCookie
from importlib import resources
from typing import Any
from urllib.parse import parse_qs, urlsplit
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from optuna.storages import BaseStorage

from ablations.dashboard.state import PageState
from core.errors import UserError, require

ADDRESS = "127.0.0.1"
NAMES = (ADDRESS, "localhost", "::1")
FILES = {
    "/": ("ablations.dashboard", "page.html", "text/html; charset=utf-8"),
    "/page.js": ("ablations.dashboard", "page.js", "text/javascript; charset=utf-8"),
    "/charts.js": ("ablations.dashboard", "charts.js", "text/javascript; charset=utf-8"),
    "/look.css": ("analysis.report", "page/look.css", "text/css; charset=utf-8"),
    "/page.css": ("ablations.dashboard", "page.css", "text/css; charset=utf-8"),
    "/d3.js": ("analysis.report", "assets/d3.min.js", "text/javascript; charset=utf-8"),
}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)
SECURITY = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
LAST_PORT = 65535
MISSING = (
    "optuna-dashboard isn't installed: pip install 'moe-diffusion-ablations[dashboard]' adds every trial's page here."
)
OTHERS = ("/dashboard", "/api", "/static", "/favicon.ico")  # where optuna-dashboard's page has what it asks for

Start = Callable[..., Any]
Application = Callable[[dict[str, Any], Start], Iterable[bytes]]


class Page:
    """The WSGI application. optuna: that of optuna-dashboard, for the paths of OTHERS; None while there is none."""

    def __init__(self, state: PageState, optuna: Callable[[], Application | None] = lambda: None) -> None:
        self.token = secrets.token_urlsafe(32)
        # Cookies don't know ports: two pages of one machine must not overwrite each other's.
        self.cookie = f"ablate_{hashlib.sha256(self.token.encode()).hexdigest()[:12]}"
        self.page_state, self._optuna = state, optuna

    def __call__(self, environ: dict[str, Any], start: Start) -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "/") or "/"
        if _host(environ) not in NAMES:
            return _say(start, "403 Forbidden", "this page is for this machine alone: use the address that was printed")
        if environ["REQUEST_METHOD"] != "GET":
            return _say(start, "405 Method Not Allowed", "this page can only be read", {"Allow": "GET"})
        query = parse_qs(environ.get("QUERY_STRING", ""))
        if self._is_token(query.get("token", [""])[0]):
            cookie = f"{self.cookie}={self.token}; HttpOnly; SameSite=Lax; Path=/"
            return _say(start, "303 See Other", "", {"Location": "/", "Set-Cookie": cookie})
        if not self._is_token(_cookie(environ, self.cookie)):
            return _say(
                start, "403 Forbidden", "open the address that `ablate dashboard` printed: its token is missing"
            )
        if path == "/state":
            return self._state(environ, query, start)
        if path in FILES:
            package, name, kind = FILES[path]
            content = _file(package, name)
            return _answer(start, "200 OK", content, {"Content-Type": kind, "Content-Security-Policy": POLICY})
        optuna = self._optuna() if path.startswith(OTHERS) else None
        if optuna is not None:
            return optuna(environ, _guarded(start))
        return _say(start, "404 Not Found", "there is no such page")

    def _is_token(self, text: str) -> bool:
        return compare_digest(text.encode(), self.token.encode())

    def _state(self, environ: Mapping[str, Any], query: Mapping[str, list[str]], start: Start) -> Iterable[bytes]:
        revision = self.page_state.revision
        if environ.get("HTTP_IF_NONE_MATCH") == f'"{revision}"':
            return _answer(start, "304 Not Modified", b"", {"ETag": f'"{revision}"'})
        revision, content = self.page_state.since(query.get("since", [""])[0])
        return _answer(start, "200 OK", content, {"Content-Type": "application/json", "ETag": f'"{revision}"'})


class Server(socketserver.ThreadingMixIn, WSGIServer):
    """A server of one page on loopback, a thread for each request."""

    daemon_threads = True

    def __init__(self, page: Page, port: int = 0) -> None:
        """port: 0 = any that is free. Raises UserError for one that can't be had."""
        require(port <= LAST_PORT, f"--port must be 1 to {LAST_PORT}, not {port}")
        try:
            super().__init__((ADDRESS, port), _Quiet)
        except OSError as error:
            raise UserError(f"--port {port}: {error.strerror}; name another one, or none") from None
        self.set_app(page)
        self._page = page

    def server_bind(self) -> None:
        """Bind as WSGIServer does, without asking a name server for this machine's name."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = ADDRESS, self.server_address[1]
        self.setup_environ()

    @property
    def url(self) -> str:
        """The address that opens the page."""
        return f"http://{ADDRESS}:{self.server_port}/?token={self._page.token}"


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *arguments: Any) -> None:
        """Nothing: a log would hold the token."""


@functools.cache
def _file(package: str, name: str) -> bytes:
    return resources.files(package).joinpath(name).read_bytes()


def _host(environ: Mapping[str, Any]) -> str | None:
    try:
        return urlsplit(f"//{environ.get('HTTP_HOST', '')}").hostname
    except ValueError:
        return None


def _cookie(environ: Mapping[str, Any], name: str) -> str:
    try:
        found = SimpleCookie(environ.get("HTTP_COOKIE", "")).get(name)
    except CookieError:
        return ""
    return found.value if found else ""


def _guarded(start: Start) -> Start:
    """start_response for another application's answers: with this page's headers, and that application's own policy."""

    def begin(status: str, headers: list[tuple[str, str]], *more: Any) -> Any:
        own = {name.lower() for name, _ in headers}
        return start(
            status, headers + [(name, value) for name, value in SECURITY.items() if name.lower() not in own], *more
        )

    return begin


def _say(start: Start, status: str, line: str, more: Mapping[str, str] | None = None) -> Iterable[bytes]:
    headers = {"Content-Type": "text/plain; charset=utf-8", "Content-Security-Policy": POLICY}
    return _answer(start, status, f"{line}\n".encode() if line else b"", headers | dict(more or {}))


def _answer(start: Start, status: str, content: bytes, headers: Mapping[str, str]) -> Iterable[bytes]:
    start(status, list({**SECURITY, "Content-Length": str(len(content)), **headers}.items()))
    return [content]


def installed() -> bool:
    """True if the optional extra is there."""
    return importlib.util.find_spec("optuna_dashboard") is not None


def application(storage: Callable[[], BaseStorage | None]) -> Callable[[], Any]:
    """Factory of the WSGI application; None before the storage could be opened, or without the extra."""

    @functools.cache
    def build(opened: BaseStorage) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it says of each of its optional parts that it is experimental
            from optuna_dashboard import wsgi

            return wsgi(opened)

    def give() -> Any:
        opened = storage()
        return build(opened) if opened is not None and installed() else None

    return give
