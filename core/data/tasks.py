"""Generated tasks whose answers can be checked: a prompt, a response, and whether another response would do.

Prompts that are held out are never trained on; training and held-out parts are the same for every run.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np

from core.config.run import RunConfig
from core.errors import UserError
from core.runtime.random_streams import numpy_stream

TRAIN, HELD_OUT = 20_000, 2_000  # examples, where there are so many
LETTERS = "abcdefghijklmnopqrstuvwxyz"
BRACKETS = ("()", "[]", "{}")
CLOSES = {pair[0]: pair[1] for pair in BRACKETS}
HIDDEN = "_"


@dataclass(frozen=True)
class Task:
    """draw: an example's prompt and a right response to it. correct: whether a response to a prompt is right."""

    draw: Callable[[np.random.Generator], tuple[str, str]]
    correct: Callable[[str, str], bool]


def _addition(rng: np.random.Generator) -> tuple[str, str]:
    left, right = rng.integers(10, 100, size=2)
    return f"{left}+{right}=", str(left + right)


def _adds_up(prompt: str, response: str) -> bool:
    return response == str(sum(int(number) for number in prompt.rstrip("=").split("+")))


def _modular(rng: np.random.Generator) -> tuple[str, str]:
    numbers, modulus = rng.integers(0, 10, size=4), rng.integers(2, 10)
    return f"{'+'.join(map(str, numbers))}%{modulus}=", str(int(numbers.sum() % modulus))


def _is_remainder(prompt: str, response: str) -> bool:
    numbers, modulus = prompt.rstrip("=").split("%")
    return response == str(sum(map(int, numbers.split("+"))) % int(modulus))


def _word(rng: np.random.Generator) -> str:
    return "".join(LETTERS[i] for i in rng.integers(len(LETTERS), size=rng.integers(3, 9)))


def _copy(rng: np.random.Generator) -> tuple[str, str]:
    word = _word(rng)
    return f"{word}>", word


def _reverse(rng: np.random.Generator) -> tuple[str, str]:
    word = _word(rng)
    return f"{word}<", word[::-1]


def _dyck(rng: np.random.Generator, pairs: int = 6) -> tuple[str, str]:
    """A balanced word, of which about a third is hidden."""
    word, open_, left = "", "", pairs
    while left or open_:
        if left and (not open_ or rng.random() < 0.5):
            word, open_, left = word + (opening := "([{"[rng.integers(3)]), open_ + opening, left - 1
        else:
            word, open_ = word + CLOSES[open_[-1]], open_[:-1]
    hidden = rng.random(len(word)) < 1 / 3
    hidden[rng.integers(len(word))] = True
    return "".join(HIDDEN if hide else symbol for symbol, hide in zip(word, hidden, strict=True)) + "=", word


def _balances(prompt: str, response: str) -> bool:
    shown = prompt.removesuffix("=")
    if len(response) != len(shown) or any(a not in (b, HIDDEN) for a, b in zip(shown, response, strict=True)):
        return False
    open_ = ""
    for symbol in response:
        if symbol in CLOSES:
            open_ += symbol
        elif not open_ or CLOSES[open_[-1]] != symbol:
            return False
        else:
            open_ = open_[:-1]
    return not open_


TASKS: dict[str, Task] = {
    "addition": Task(_addition, _adds_up),
    "modular": Task(_modular, _is_remainder),
    "copy": Task(_copy, lambda prompt, response: response == prompt[:-1]),
    "reverse": Task(_reverse, lambda prompt, response: response == prompt[-2::-1]),
    "dyck": Task(_dyck, _balances),
    "dyck_long": Task(partial(_dyck, pairs=127), _balances),  # 254 symbols and an end: responses of 256
}


@dataclass(frozen=True)
class Examples:
    """Prompts and right responses, to train on and held out; no prompt is in both."""

    train: list[tuple[str, str]]
    held_out: list[tuple[str, str]]


@lru_cache(maxsize=8)
def examples(name: str) -> Examples:
    """The examples of a task. Raises UserError for an unknown one."""
    if name not in TASKS:
        raise UserError(f"data.corpus=task:{name}: '{name}' is no task; use one of {', '.join(TASKS)}")
    rng, found = numpy_stream(0, "task", name), dict[str, str]()
    tries = 0
    while len(found) < TRAIN + HELD_OUT and tries < 2 * (TRAIN + HELD_OUT):
        prompt, response = TASKS[name].draw(rng)
        found.setdefault(prompt, response)
        tries += 1
    pairs = list(found.items())
    held = min(HELD_OUT, len(pairs) // 10)
    return Examples(pairs[held:], pairs[:held])


def task_of(config: RunConfig) -> str:
    """The name of the task that a run was trained on. Raises UserError for a run on something else."""
    kind, _, name = config.data.corpus.partition(":")
    if kind != "task":
        raise UserError(
            f"data.corpus={config.data.corpus} is no task: use a run on one of {', '.join(TASKS)} (task:NAME)"
        )
    return name


def room(name: str) -> int:
    """The least power of two that holds every held-out response of a task and its end: any power of two below divides it."""
    longest = max(len(response) for _, response in examples(name).held_out) + 1
    return 1 << (longest - 1).bit_length()


def first_held_out(name: str, count: int, what: str = "examples") -> list[tuple[str, str]]:
    """The first held-out prompts and right responses; an error calls them `what`. Raises UserError where there are fewer."""
    held = examples(name).held_out
    if not 1 <= count <= len(held):
        raise UserError(f"{count} {what}: task:{name} holds out {len(held)}, so ask for 1 to {len(held)}")
    return held[:count]


@lru_cache(maxsize=8)
def _symbols(name: str) -> list[str]:
    """Symbols of a task's responses."""
    return sorted({symbol for _, right in examples(name).held_out for symbol in right})


def spoiled(name: str, prompt: str, response: str, rng: np.random.Generator) -> str:
    """A response that is wrong by one symbol: another of the task's own, where the prompt hid something there if it hides
    anything. Raises ValueError where no such response is wrong."""
    hidden = [place for place, symbol in enumerate(prompt) if symbol == HIDDEN] or list(range(len(response)))
    symbols = _symbols(name)
    for choice in rng.permutation(len(hidden) * len(symbols)):
        place, symbol = hidden[choice // len(symbols)], symbols[choice % len(symbols)]
        other = response[:place] + symbol + response[place + 1 :]
        if not TASKS[name].correct(prompt, other):
            return other
    raise ValueError(f"no response to '{prompt}' is wrong by one symbol")
