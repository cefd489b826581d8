"""A function that isn't trusted, called from another process: what passes between the two are literals, nothing that acts.

This file is also the beginning of the programs that run on either side (core.execution.examining puts them together), so it
needs nothing but the standard library.
"""

import contextlib
import json
import os
import sys
from typing import Any, TextIO

LONGEST = 2**20  # characters of a message


class CallError(Exception):
    """Exception raised by the other side, with its message."""


def encode(value: Any) -> Any:
    """A value of Python's own types as JSON, which `decode` makes an equal one of. Raises TypeError for anything else."""
    if value is None or type(value) in (bool, str):
        return value
    if type(value) in (int, float):
        return {type(value).__name__: value.hex() if type(value) is float else hex(value)}
    if type(value) is complex:
        return {"complex": [encode(value.real), encode(value.imag)]}
    if type(value) is bytes:
        return {"bytes": value.hex()}
    if type(value) in (list, tuple, set, frozenset):
        return {type(value).__name__: [encode(each) for each in value]}
    if isinstance(value, dict):  # its subclasses too, which compare as it does
        return {"dict": [[encode(key), encode(each)] for key, each in value.items()]}
    raise TypeError(f"a {type(value).__name__} isn't a plain value")


def decode(content: Any) -> Any:
    """Inverse of `encode`. Raises ValueError for JSON that it never makes."""
    if content is None or isinstance(content, (bool, str)):
        return content
    if not isinstance(content, dict) or len(content) != 1:
        raise ValueError("no encoded value")
    ((kind, inner),) = content.items()
    if kind == "int":
        return int(inner, 16)
    if kind == "float":
        return float.fromhex(inner)
    if kind == "complex":
        return complex(*(float(decode(each)) for each in inner))
    if kind == "bytes":
        return bytes.fromhex(inner)
    if kind == "dict":
        return {decode(key): decode(each) for key, each in inner}
    if kind in ("list", "tuple", "set", "frozenset"):
        return {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset}[kind](decode(each) for each in inner)
    raise ValueError("no encoded value")


def take_pipes() -> tuple[TextIO, TextIO]:
    """Keep stdin and stdout for messages; whatever else is read or written is nothing."""
    pipes = os.fdopen(os.dup(0), encoding="utf-8"), os.fdopen(os.dup(1), "w", encoding="utf-8")
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1):
        os.dup2(nothing, descriptor)
    return pipes


def send(pipe: TextIO, content: Any) -> None:
    """Send a message: JSON, and the end of the line."""
    pipe.write(json.dumps(content) + "\n")
    pipe.flush()


def serve(source: str, name: str) -> None:
    """The side that isn't trusted: run a source, then call its function as often as asked."""
    requests, answers = take_pipes()
    names: dict[str, Any] = {"__name__": "candidate"}
    try:
        exec(compile(source, "candidate.py", "exec"), names)
    except BaseException as error:  # SystemExit is one more way not to answer
        send(answers, {"error": f"{type(error).__name__}: {error}"[:300]})
        return
    for line in requests:
        try:
            arguments, named = decode(json.loads(line)["call"])
            answer = {"value": encode(names[name](*arguments, **named))}
        except BaseException as error:
            answer = {"error": f"{type(error).__name__}: {error}"[:300]}
        send(answers, answer)


def examine(source: str, test: str, name: str, nonce: str) -> None:
    """The side that is trusted: run the tests of a function that the other side has, and write the nonce if they all hold.

    source: what the tests may need beside the function. Nothing that the other side wrote is executed here, so that it can't
    write the nonce, which goes to stderr, nor make these tests end early.
    """
    answers, requests = take_pipes()

    def candidate(*arguments: Any, **named: Any) -> Any:
        with contextlib.suppress(BrokenPipeError):  # it may have said why it ended
            send(requests, {"call": encode([list(arguments), named])})
        line = answers.readline(LONGEST)
        if not line.endswith("\n"):
            raise EOFError("the program ended, or its answer was too long")
        answer = json.loads(line)
        if "error" in answer:
            raise CallError(str(answer["error"])[:300])
        return decode(answer["value"])

    names: dict[str, Any] = {"__name__": "tests"}
    try:
        exec(compile(source, "prompt.py", "exec"), names)
        names[name] = candidate  # some tests call it by its name
        exec(compile(test, "tests.py", "exec"), names)
        names["check"](candidate)
    except BaseException as error:
        sys.stderr.write((str(error) if isinstance(error, CallError) else f"{type(error).__name__}: {error}")[:500])
        sys.stderr.flush()
        os._exit(1)
    sys.stderr.write(nonce)
    sys.stderr.flush()
    os._exit(0)
