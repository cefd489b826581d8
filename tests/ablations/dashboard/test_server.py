"""The page's server: who gets in, and what it answers."""

import io
import json
import re
import threading
import urllib.error
import urllib.request

import pytest

from ablations.dashboard.server import Page, Server
from ablations.dashboard.state import PageState
from core.errors import UserError


def ask(page: Page, path: str = "/", *, method="GET", host="127.0.0.1:8123", cookie: str | None = "", **headers: str):
    """One request, with the page's own cookie unless another is given; status, headers and content."""
    path, _, query = path.partition("?")
    environ = {
        "REQUEST_METHOD": method, "PATH_INFO": path, "QUERY_STRING": query, "HTTP_HOST": host, "wsgi.input": io.BytesIO(),
        "SERVER_NAME": "127.0.0.1", "SERVER_PORT": "8123", "wsgi.url_scheme": "http", **headers,
    }  # fmt: skip
    if cookie is not None:
        environ["HTTP_COOKIE"] = cookie or f"{page.cookie}={page.token}"
    seen = {}

    def start(status, found, *_):
        seen.update(status=int(status.split()[0]), headers=dict(found))

    content = b"".join(page(environ, start))
    return seen["status"], seen["headers"], content.decode()


@pytest.fixture
def page() -> Page:
    board = PageState()
    board.put("head", {"question": "Why?"})
    return Page(board)


def test_the_token_is_exchanged_for_a_cookie_and_leaves_the_address(page) -> None:
    status, headers, _ = ask(page, f"/?token={page.token}", cookie=None)
    assert status == 303 and headers["Location"] == "/"
    assert headers["Set-Cookie"] == f"{page.cookie}={page.token}; HttpOnly; SameSite=Lax; Path=/"
    status, _, content = ask(page)
    assert status == 200 and "<!doctype html>" in content and page.token not in content


@pytest.mark.parametrize("path", ["/", "/state", "/page.js", "/d3.js", "/dashboard", "/nothing"])
def test_without_the_token_nothing_is_told(page, path) -> None:
    for cookie in (None, "other=1", f"{page.cookie}=wrong", f"{page.cookie}={page.token}x", "\x00;=;", "ä=ö"):
        status, headers, content = ask(page, path, cookie=cookie)
        assert status == 403 and "Why?" not in content and "Set-Cookie" not in headers
    assert ask(page, f"{path}?token=wrong", cookie=None)[0] == 403
    assert ask(page, f"{path}?token=", cookie=None)[0] == 403


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8123", "127.0.0.1.evil.example", "", "[::1", "192.168.0.1"]
)
def test_another_sites_name_for_this_machine_is_refused(page, host) -> None:
    assert ask(page, host=host)[0] == 403
    assert ask(page, f"/?token={page.token}", host=host, cookie=None)[0] == 403


def test_a_forwarded_port_is_this_machine_too(page) -> None:
    assert [ask(page, host=host)[0] for host in ("localhost:9000", "127.0.0.1", "[::1]:9000")] == [200, 200, 200]


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS"])
def test_it_can_only_be_read(page, method) -> None:
    status, headers, _ = ask(page, "/state", method=method)
    assert status == 405 and headers["Allow"] == "GET"


def test_every_answer_keeps_other_sites_and_scripts_out(page) -> None:
    for path in ("/", "/page.js", "/state", "/nothing", f"/?token={page.token}"):
        headers = ask(page, path)[1]
        assert headers["X-Content-Type-Options"] == "nosniff" and headers["X-Frame-Options"] == "DENY"
        assert headers["Referrer-Policy"] == "no-referrer" and headers["Cache-Control"] == "no-store"
    policy = ask(page)[1]["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy and "unsafe" not in policy
    content = ask(page)[2]
    assert not re.search(r"<script(?! src)|<style| style=| on\w+=|https?://", content)


def test_only_what_changed_is_told_and_nothing_where_nothing_did(page) -> None:
    status, headers, content = ask(page, "/state?since=")
    first = json.loads(content)
    assert status == 200 and first["sections"] == {"head": {"question": "Why?"}}
    tag = headers["ETag"]
    status, headers, content = ask(page, "/state?since=", HTTP_IF_NONE_MATCH=tag)
    assert (status, content, headers["ETag"]) == (304, "", tag)
    page.page_state.put("head", {"question": "Why?"})
    assert ask(page, "/state", HTTP_IF_NONE_MATCH=tag)[0] == 304
    page.page_state.put("curves", {"mean": [float("nan"), 1 / 3]})
    status, _, content = ask(page, f"/state?since={first['revision']}", HTTP_IF_NONE_MATCH=tag)
    assert status == 200 and json.loads(content)["sections"] == {"curves": {"mean": [None, 0.333333]}}
    for other in ("", "of another command-7", "x", f"{first['revision']}9x"):  # everything
        assert set(json.loads(ask(page, f"/state?since={other.replace(' ', '+')}")[2])["sections"]) == {
            "head",
            "curves",
        }


def test_another_application_is_below_the_same_token_and_can_only_be_read(page) -> None:
    def beside(environ, start):
        start("200 OK", [("Content-Security-Policy", "default-src 'self'")])
        return [environ["PATH_INFO"].encode()]

    both = Page(PageState(), lambda: beside)
    status, headers, content = ask(both, "/dashboard/studies/0")
    assert (status, content) == (200, "/dashboard/studies/0")
    assert headers["Content-Security-Policy"] == "default-src 'self'" and headers["X-Frame-Options"] == "DENY"
    assert ask(both, "/api/studies", cookie=None)[0] == 403
    assert ask(both, "/api/studies/0", method="DELETE")[0] == 405
    assert ask(both, "/elsewhere")[0] == 404 and ask(page, "/dashboard")[0] == 404


def test_it_listens_on_loopback_alone_and_writes_no_log(page, capfd) -> None:
    with Server(page) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        assert server.socket.getsockname()[0] == "127.0.0.1"
        opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
        with opener.open(server.url, timeout=60) as answer:
            assert answer.url == f"http://127.0.0.1:{server.server_port}/" and answer.status == 200
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(answer.url, timeout=60)
        with pytest.raises(UserError, match=f"--port {server.server_port}"):
            Server(page, server.server_port)
        server.shutdown()
    assert capfd.readouterr() == ("", "")
