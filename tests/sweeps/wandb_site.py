"""A W&B of a few answers on loopback: who is asking, which projects there are, views that are kept, runs that are sent."""

import base64
import contextlib
import gzip
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class SentRun:
    """What came of one run: history rows as they lie in its file, the last summary, files, and how its segments ended."""

    history: list[dict] = field(default_factory=list)
    summary: dict = field(default_factory=dict)
    config: str = "{}"
    fields: dict = field(default_factory=dict)
    files: list[str] = field(default_factory=list)
    exits: list[int] = field(default_factory=list)

    @property
    def steps(self) -> list[int]:
        return [row["_step"] for row in self.history]

    @property
    def bucket(self) -> dict:
        """The run as GraphQL shows it."""
        project = {"id": "p", "name": "proj", "entity": {"id": "e", "name": "me"}}
        bucket = {
            "id": "b",
            "name": "",
            "displayName": "",
            "project": project,
            "tags": [],
            "notes": "",
            "state": "finished",
        }
        bucket |= {"logLineCount": 0, "eventsLineCount": 0, "historyLineCount": len(self.history), "eventsTail": "[]"}
        bucket |= {"config": self.config, "summaryMetrics": json.dumps(self.summary), "wandbConfig": '{"t": 1}'}
        bucket |= {
            "historyTail": json.dumps([json.dumps(row) for row in self.history[-1:]]),
            "user": {"username": "me"},
        }
        last = {"lastStep": self.history[-1]["_step"]} if self.history else {}
        return bucket | {"historyKeys": last, "createdAt": "2026-01-01T00:00:00Z", "projectId": 1, "readOnly": False}


class Site:
    """views: what was saved, by id; queries: the names of all operations, in order; runs: what was sent, by id.

    refuses: of runs whose rows it refuses, how many it takes before; key: that it knows (None: any).
    """

    def __init__(self) -> None:
        self.views: dict[str, dict] = {}
        self.runs: dict[str, SentRun] = {}
        self.refuses: dict[str, int] = {}
        self.key: str | None = None
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
        if "upsertBucket(" in query:
            return self._upsert(variables)
        if "RunResumeStatus" in query or "bucket(name:" in query:
            run = self.runs.get(variables["name"])
            return {
                "model": {"id": "p", "name": "proj", "entity": {"id": "e", "name": "me"}, "bucket": run and run.bucket}
            }
        if "createRunFiles" in query:
            files = [
                {"name": name, "uploadUrl": f"{self.url}/upload/{variables['run']}/{name}"}
                for name in variables["files"]
            ]
            return {"createRunFiles": {"runID": "b", "uploadHeaders": [], "files": files}}
        if "run(name:" in query:
            run = self.runs.get(variables["name"])
            return {"project": {"internalId": "1", "run": run and run.bucket | {"name": variables["name"]}}}
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

    def _upsert(self, variables: dict) -> dict:
        new = variables["name"] not in self.runs
        run = self.runs.setdefault(variables["name"], SentRun())
        run.config = variables.get("config") or run.config
        run.fields |= {key: value for key, value in variables.items() if value is not None}
        return {"upsertBucket": {"bucket": run.bucket | {"name": variables["name"]}, "inserted": new}}

    def stream(self, run_id: str, content: dict) -> bool:
        """Take what a file stream brings; False where the run's rows are refused."""
        run, files = self.runs[run_id], content.get("files", {})
        if rows := files.get("wandb-history.jsonl"):
            taken = [json.loads(row) for row in rows["content"]][: self.refuses.get(run_id)]
            run.history[rows["offset"] :] = taken
            if run_id in self.refuses:
                return False
        if summary := files.get("wandb-summary.json"):
            run.summary = json.loads(summary["content"][-1])
        run.exits += [content["exitcode"]] if content.get("complete") else []
        return True

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
            body = gzip.decompress(body) if self.headers.get("content-encoding") == "gzip" else body
            data: dict = {}
            said = base64.b64decode((self.headers.get("authorization") or " ").split(" ")[1]).decode()
            if site.key is not None and self.path.endswith("/graphql") and said != f"api:{site.key}":
                return self._send({"errors": [{"message": "permission denied"}]}, 401)
            if self.path.endswith("/file_stream"):
                taken = site.stream(self.path.split("/")[-2], json.loads(body))
                return self._send({} if taken else {"error": "rows refused"}, 200 if taken else 403)
            if self.path.endswith("/graphql"):
                asked = json.loads(body)
                site.queries.append(asked.get("operationName") or asked["query"].split("{")[0].strip())
                data = site.answer(asked["query"], asked.get("variables") or {})
            self._send({"data": data})

        def do_PUT(self) -> None:
            self.rfile.read(int(self.headers.get("content-length") or 0))
            _, _, run_id, name = self.path.split("/", 3)
            site.runs[run_id].files.append(name)
            self._send({})

        def do_GET(self) -> None:
            self._send({})

        def _send(self, content: dict, status: int = 200) -> None:
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.end_headers()
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # who asked may have crashed
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
