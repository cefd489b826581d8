"""Ledgers as a sweep opens them, and what tests do with them."""

from collections import Counter

from sweeps.runs.ledger import Ledger
from sweeps.storage.storage import default_url, open_storage
from tests.sweeps.trainers import quick


def opened(plan, out, url=None, patience=None):
    """The ledger of a plan, its runs queued."""
    ledger = Ledger(plan, out, open_storage(url or default_url(out), patience))
    ledger.reconcile()
    return ledger


def train_claimed(ledger, claim):
    """Train a claimed run at once, and tell of it."""
    ledger.finish(claim, quick(claim.run.config, claim.folder), {})


def train_all(ledger):
    """Train what waits; the runs in their order."""
    order = []
    while (claim := ledger.claim()[0]) is not None:
        order.append(claim.run)
        train_claimed(ledger, claim)
    return order


def states(ledger):
    """Number of trials by state."""
    return Counter(trial.state.name for trial in ledger._study.get_trials())
