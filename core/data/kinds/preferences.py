"""Corpora of preferences: a chosen and a rejected response to each prompt, from a file or made of a task."""

from dataclasses import replace

from core.data.corpus import Corpus, Reading, corpus
from core.data.documents import read_jsonl, text_of
from core.data.files import locate_file
from core.data.responses import held_out_rows, of_pairs
from core.data.splits import Origin
from core.data.tasks import examples, spoiled
from core.errors import UserError
from core.runtime.random_streams import numpy_stream

GENERATED = 4_000  # pairs of responses to a task


@corpus("preferences", responses=True, pairs=True)
def _preferences(argument: str, reading: Reading) -> Corpus:
    """preferences:FILE.jsonl with "prompt", "chosen" and "rejected": two sequences a pair, each filled up with eos.

    preferences:task:NAME makes its own: a task's right response, and one that is wrong by a symbol. Raises UserError as
    instructions do.
    """
    kind, _, task = argument.partition(":")
    rows, origin = list[tuple[str, str, str]](), Origin(fixed=True)
    if kind == "task" and task:
        made, rng = examples(task), numpy_stream(0, "preferences", task)
        for prompt, right in (*made.train[:GENERATED], *made.held_out[: GENERATED // 4]):
            wrong = spoiled(task, prompt, right, rng)
            rows += [(f"task:{task}", prompt, right), (f"task:{task}", prompt, wrong)]
        held = len(made.held_out[: GENERATED // 4])
    else:
        path = locate_file("preferences", argument)
        for number, row in read_jsonl(path):
            prompt, *sides = (text_of(row, key, path, number) for key in ("prompt", "chosen", "rejected"))
            rows += [(f"{path}:{number}", prompt, side) for side in sides]
        if len(rows) < 40:
            raise UserError(f"{path} has {len(rows) // 2} pairs: at least 20 are needed, two of them to hold out")
        held = held_out_rows(len(rows) // 2, reading.held_out_share)
        origin = Origin([path.name], [f"the last {held:,} of {len(rows) // 2:,} pairs"])
    name = "preferences" if kind != "task" else f"preferences:task:{task}"
    pairs = of_pairs(name, rows, 2 * held, reading._replace(packing=False))
    return replace(pairs, rows=2, origin=origin)
