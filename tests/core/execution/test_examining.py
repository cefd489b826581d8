"""Functions that nobody vouches for: right ones pass, and no trick does."""

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.execution.calls import decode, encode
from core.execution.examining import Examined, examine, examine_all
from core.execution.sandbox import Limits

TEST = """
def check(candidate):
    assert candidate(2, 3) == 5
    assert candidate([1], b=[2]) == [1, 2]
    assert add((1.5,), ()) == (1.5,)
"""
HEAD = "def add(a, b):\n    '''Their sum.'''\n"
LIMITS = Limits(wall_s=120.0)  # never reached, on a busy machine either

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(st.integers() | st.text(), inner),
    max_leaves=6,
)


def verdict(body: str, test: str = TEST, limits: Limits = LIMITS):
    return examine(Examined(HEAD + body, "add", test, HEAD), limits)


@settings(max_examples=30, deadline=None)
@given(plain)
def test_plain_values_come_back_equal_and_of_one_type(value) -> None:
    found = decode(json.loads(json.dumps(encode(value))))
    assert found == value and repr(found) == repr(value)


def test_other_values_come_back_or_are_refused() -> None:
    assert math.isnan(decode(encode(math.nan))) and decode(encode({1, 2})) == {1, 2} and decode(encode(1j)) == 1j
    assert decode(encode(frozenset([()]))) == frozenset([()])
    for value in (object(), int, lambda: 1, type("S", (str,), {})("a")):
        with pytest.raises(TypeError):
            encode(value)
    for content in ([], {}, {"eval": "1"}, {"int": "1", "float": "1"}, 3):
        with pytest.raises(ValueError):
            decode(content)


def test_a_right_function_passes_and_a_wrong_one_says_why() -> None:
    asked = [Examined(HEAD + body, "add", TEST, HEAD) for body in ("    return a + b", "    return a", "    retur a")]
    right, wrong, broken = examine_all(asked, LIMITS, 2)
    assert right.passed and right.reason is None
    assert not wrong.passed and wrong.reason == "AssertionError: "
    assert not broken.passed and broken.reason.startswith("SyntaxError: ")


@pytest.mark.parametrize(
    "trick",
    [
        "    import sys; sys.exit(0)",
        "    import os; os._exit(0)",
        "    return a\nimport sys\nsys.exit(0)",
        "    class Equal:\n        def __eq__(self, other): return True\n    return Equal()",
        "    return a\nimport builtins\nbuiltins.AssertionError = ValueError\nprint('passed', flush=True)",
        "    return a\nimport os\nfor n in range(64):\n    try: os.write(n, b'passed\\n' * 9)\n    except OSError: pass",
        "    return 'a' * 2**21",
    ],
    ids=["exit", "_exit", "exit at once", "equals all", "print", "write everywhere", "too long"],
)
def test_no_trick_passes(trick: str) -> None:
    assert not verdict(trick).passed


def test_a_nonce_of_one_examination_is_none_of_another(monkeypatch) -> None:
    spy = "    import sys, gc\n    return [n for n in map(str, gc.get_objects()) if 'nonce' in n or len(n) == 32] and None"
    found = verdict(spy)
    assert not found.passed and "AssertionError" in found.reason


def test_one_that_never_answers_is_out_of_time() -> None:
    assert verdict("    while True: pass", limits=Limits(wall_s=1.0)).reason == "out of time"


def test_tests_that_end_early_are_no_pass() -> None:
    for test in ("def check(candidate):\n    raise SystemExit(0)", "import os\nos._exit(0)"):
        assert not verdict("    return a + b", test).passed
