"""A sweep in a process of its own: main([PLAN.json, OUT]) with two workers and the slow trainer, or others."""

import json
from collections.abc import Sequence
from pathlib import Path

from sweeps.launch.local import run
from sweeps.launch.progress import present
from sweeps.studies.plan import Plan


def main(arguments: Sequence[str]) -> int:
    """Run the sweep and print its summary; 130 when it was interrupted."""
    plan = Plan.from_json(json.loads(Path(arguments[0]).read_text()))
    trainer, workers = arguments[2:] or ("slow", "2")
    with present(plan) as show:
        summary = run(
            plan, Path(arguments[1]), workers=int(workers), trainer=f"tests.sweeps.trainers:{trainer}", on_event=show
        )
    print(json.dumps(vars(summary)))
    return 130 if summary.interrupted else 0
