"""Corpora of generated tasks, whose answers can be checked."""

from core.data.corpus import Corpus, Reading, corpus
from core.data.responses import of_pairs
from core.data.tasks import examples


@corpus("task", responses=True)
def _task(argument: str, reading: Reading) -> Corpus:
    """task:NAME, a generated task of core.data.tasks: one example a sequence, filled up with eos, or packed."""
    made = examples(argument)
    pairs = [(f"task:{argument}", *pair) for pair in (*made.train, *made.held_out)]
    return of_pairs(f"task:{argument}", pairs, len(made.held_out), reading)
