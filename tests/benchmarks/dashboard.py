"""The live page of a study of 2000 runs: how long until it is first seen, and an answer takes while it reads and judges."""

import http.cookiejar
import json
import statistics
import tempfile
import threading
import time
import urllib.request
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ablations.dashboard.poller import Poller, favour_requests
from ablations.dashboard.server import Page, Server
from core.records.run_record import FILE_NAME
from tests.analysis.conftest import make_design, make_record

ARMS, SEEDS, ROWS = 20, 100, 200
FILES = ("/", "/page.css", "/page.js", "/charts.js", "/d3.js", "/state?since=")


def leave_study(out: Path, arms: int = ARMS, seeds: int = SEEDS, rows: int = ROWS, bulk: bool = True) -> dict[str, Any]:
    """Records of all but the last run of a made-up study, with curves of so many rows; returns its design.

    bulk: with all that records have and the page doesn't show, which is most of a real one.
    """
    design, rng = make_design(arms, seeds), np.random.default_rng(0)
    steps = [float(10 * (row + 1)) for row in range(rows)]
    more: dict[str, Any] = {} if bulk else {"expert_load": {}, "study": {}}
    more["routing"] = {} if not bulk else {"load_by_timestep": rng.random((4, 10, 2, 16)).round(5).tolist()}
    for arm in design["arms"]:
        for seed in design["seeds"]:
            if (arm, seed) != (design["arms"][-1], design["seeds"][-1]):
                _leave(out, design, arm["name"], seed, steps, more)
    (out / "toy" / "design.json").write_text(json.dumps(design))
    return design


def leave_last(out: Path, design: dict[str, Any]) -> None:
    """The record that `leave_study` left out."""
    _leave(out, design, design["arms"][-1]["name"], design["seeds"][-1], [10.0, 20.0], {"routing": {}})


def _leave(out: Path, design: dict[str, Any], arm: str, seed: int, steps: list[float], more: dict[str, Any]) -> None:
    record = make_record(design, arm, seed)
    last = record.metrics["val/nelbo"]
    losses = [last + 3 * 2 ** (-step / 300) for step in steps]
    names = ("loss", "nelbo", "load_balancing", "z_loss", "gradient_norm", "learning_rate")
    curve = {"step": steps, "tokens": steps} | {f"train/{name}": losses for name in names}
    validation = {"step": steps[::10], "tokens": steps[::10]} | {f"val/{i}": losses[::10] for i in range(20)}
    record = replace(record, curve=curve, validation=validation | {"val/nelbo": losses[::10]}, **more)
    folder = out / "toy" / arm / f"seed-{seed}-{record.run_hash}"
    folder.mkdir(parents=True)
    (folder / FILE_NAME).write_text(record.to_json() + "\n")


def measure() -> dict[str, float]:
    """Seconds: to the first view, to everything read and judged, of an answer (median, 95 %, longest), and of a later look
    that finds one new record; and the bytes of the whole state and of such a look's answer."""
    with tempfile.TemporaryDirectory() as place:
        out = Path(place)
        design = leave_study(out)
        favour_requests()
        began = time.perf_counter()
        poller = Poller("toy", out, None, "ablate report toy")
        with Server(Page(poller.state)) as server:
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
            poller.start()
            client = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(http.cookiejar.CookieJar()))
            client.open(server.url).read()
            base = server.url.partition("/?")[0]
            for path in FILES:
                content = client.open(base + path).read()
            found = {"first_view": time.perf_counter() - began}
            seconds: list[float] = []
            while "trouble" not in json.loads(content)["sections"]:  # the last thing that a look tells
                time.sleep(0.02)
                asked = time.perf_counter()
                content = client.open(f"{base}/state?since=").read()
                seconds.append(time.perf_counter() - asked)
            found |= {"all_read": time.perf_counter() - began, "bytes": len(content)}
            found |= {"p50": statistics.median(seconds), "longest": max(seconds)}
            found["p95"] = statistics.quantiles(seconds, n=20)[-1] if len(seconds) > 1 else seconds[0]
            server.shutdown()
        poller.stop()
        known = json.loads(content)["revision"]
        leave_last(out, design)
        began = time.perf_counter()
        poller.look()
        return found | {"look": time.perf_counter() - began, "update_bytes": len(poller.state.since(known)[1])}


def table(found: dict[str, float]) -> list[str]:
    """The measurement as Markdown."""
    return [
        f"| live page, {ARMS * SEEDS} runs | |",
        "|---|---|",
        f"| first view (page, scripts, first state) | {found['first_view']:.2f} s |",
        f"| all records read and judged, in the background | {found['all_read']:.1f} s |",
        f"| an answer meanwhile, p50 / p95 / longest | {1e3 * found['p50']:.0f} / {1e3 * found['p95']:.0f} / "
        f"{1e3 * found['longest']:.0f} ms, {found['bytes'] / 1e3:.0f} kB |",
        f"| a new record read, judged and ready | {1e3 * found['look']:.0f} ms, {found['update_bytes'] / 1e3:.1f} kB |",
    ]
