"""A W&B of a few GraphQL answers on loopback: who is asking, which projects there are, and views that are kept."""

import base64
import contextlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Site:
    """views: what was saved, by id; queries: the names of all operations, in order."""

    def __init__(self) -> None:
        self.views: dict[str, dict] = {}
        self.queries: list[str] = []
        self.projects: list[str] = []
        self.url = ""

    def answer(self, query: str, variables: dict) -> dict:
        if "UpsertView2" in query or "upsertView(" in query:
            return self._keep(variables)
        if "upsertModel" in query:
            said = variables["input"]
            self.projects.append(said["name"])
            project = {"name": said["name"], "entityName": said["entityName"], "id": "p", "description": ""}
            return {"upsertModel": {"model": project, "project": project, "inserted": True}}
        if "viewer" in query:
            teams = {"edges": [{"node": {"name": "me"}}]}
            viewer = {"id": "u", "entity": "me", "username": "me", "email": "me@x", "flags": "{}", "teams": teams}
            return {"viewer": viewer | {"admin": False, "apiKeys": {"edges": []}}}
        if "models(" in query:
            node = {"entityName": "me", "createdAt": "", "isBenchmark": False, "user": None}
            edges = [{"node": node | {"id": name, "name": name}, "cursor": ""} for name in self.projects]
            return {"models": {"edges": edges, "pageInfo": {"endCursor": None, "hasNextPage": False}}}
        if "project(" in query:
            project = {"id": "p", "internalId": base64.b64encode(b"Project:1").decode(), "name": "proj"}
            return {"project": project | {"entity": {"name": "me"}, "entityName": "me"}}
        return {}

    def _keep(self, variables: dict) -> dict:
        number = variables.get("id") or f"Vmlldzo{len(self.views)}"
        self.views[number] = variables
        user = {"id": "u", "username": "me", "name": "me", "photoUrl": "", "__typename": "User"}
        project = {"id": "p", "name": variables["projectName"], "entityName": variables["entityName"]}
        view = {key: variables.get(key) for key in ("type", "name", "displayName", "description", "spec")}
        view |= {"id": number, "project": project, "user": user, "createdAt": "2026", "updatedAt": "2026"}
        return {"upsertView": {"view": view | {"previewUrl": None, "coverUrl": None}, "inserted": True}}


@contextlib.contextmanager
def serving() -> Iterator[Site]:
    """The site, answering until the end."""
    site = Site()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            data: dict = {}
            if self.path.endswith("/graphql"):
                asked = json.loads(body)
                site.queries.append(asked.get("operationName") or asked["query"].split("{")[0].strip())
                data = site.answer(asked["query"], asked.get("variables") or {})
            self._send({"data": data})

        def do_GET(self) -> None:
            self._send({})

        def _send(self, content: dict) -> None:
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.end_headers()
            self.wfile.write(json.dumps(content).encode())

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    site.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield site
    finally:
        server.shutdown()
