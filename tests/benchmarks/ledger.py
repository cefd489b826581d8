"""Waiting time of a worker for its next run: 2000 runs finished, 32 workers, on PostgreSQL and on the journal."""

import multiprocessing
import random
import statistics
import tempfile
import time
from datetime import datetime
from pathlib import Path
from typing import Any

from optuna.trial import TrialState

from sweeps.runs.ledger import Ledger
from sweeps.runs.trials import describe_run, parameter_names
from sweeps.storage.storage import default_url, open_storage
from sweeps.studies.plan import Plan
from tests.benchmarks.sweep import declared
from tests.sweeps import postgres
from tests.sweeps.trainers import quick

FINISHED, WORKERS, CLAIMS = 2000, 32, 10
RUN_S = (2.0, 4.0)  # what a worker does between two claims


def measure() -> dict[str, dict[str, float]]:
    """By storage: p50 and p95 of a claim in seconds, of a worker's first one, and of telling a result."""
    found = {}
    planned = declared((FINISHED + WORKERS * CLAIMS) // 2)
    with tempfile.TemporaryDirectory() as place:
        found["journal"] = _contest(planned, Path(place), default_url(Path(place)))
    if postgres.missing() is None:
        with postgres.server() as server, tempfile.TemporaryDirectory() as place:
            found["PostgreSQL"] = _contest(planned, Path(place), server.create("bench"))
    return found


def _contest(planned: Plan, out: Path, url: str) -> dict[str, float]:
    ledger = Ledger(planned, out, open_storage(url))
    names = parameter_names(planned, [])
    for index, chosen in enumerate(planned.runs):
        state = TrialState.COMPLETE if index < FINISHED else TrialState.WAITING
        trial = describe_run(planned, chosen, out, names)
        if state == TrialState.COMPLETE:
            trial.state, trial.values = state, [2.0]
            trial.datetime_start = trial.datetime_complete = datetime.now()
        ledger._storage.create_new_trial(ledger._study._study_id, trial)
    context = multiprocessing.get_context("fork")
    ready, results = context.Barrier(WORKERS), context.Queue()
    arguments = (planned, out, url, ready, results)
    processes = [context.Process(target=_work, args=(number, *arguments)) for number in range(WORKERS)]
    for process in processes:
        process.start()
    rows: list[dict[str, Any]] = [results.get(timeout=600) for _ in processes]
    for process in processes:
        process.join()
    claims = [seconds for row in rows for seconds in row["claims"][1:]]
    return {
        "claims": len(claims),
        "p50": statistics.median(claims),
        "p95": statistics.quantiles(claims, n=20)[-1],
        "first_p50": statistics.median(row["claims"][0] for row in rows),
        "first_p95": statistics.quantiles([row["claims"][0] for row in rows], n=20)[-1],
        "tell_p95": statistics.quantiles([seconds for row in rows for seconds in row["tells"]], n=20)[-1],
    }


def _work(number: int, planned: Plan, out: Path, url: str, ready: Any, results: Any) -> None:
    ledger, chance = Ledger(planned, out, open_storage(url)), random.Random(number)
    ready.wait(300)
    claims, tells = [], []
    for _ in range(CLAIMS):
        began = time.perf_counter()
        claim, _ = ledger.claim()
        claims.append(time.perf_counter() - began)
        if claim is None:
            break
        time.sleep(chance.uniform(*RUN_S))
        record = quick(claim.run.config, claim.folder)
        began = time.perf_counter()
        ledger.finish(claim, record, {})
        tells.append(time.perf_counter() - began)
    results.put({"claims": claims, "tells": tells})
