from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pytest

from core.config.field_types import check_fields
from core.errors import UserError


@dataclass(frozen=True)
class Part:
    name: str = "a"


@dataclass(frozen=True)
class Declared:
    parts: tuple[Part, ...] = (Part(),)
    names: tuple[str, ...] = ()
    pair: tuple[float, float] = (0.0, float("inf"))
    margin: float | None = None
    count: int = 1
    flag: bool = False
    kind: Literal["all", "none"] | tuple[Mapping[str, int], ...] = "all"
    seeds: Sequence[int] = (0,)
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_fields(self, endless=("pair",))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"parts": Part()}, r"^parts: a tuple of one needs its comma: write parts=\(Part\(name='a'\),\)$"),
        ({"names": "val/nelbo"}, r"^names: a tuple of one needs its comma: write names=\('val/nelbo',\)$"),
        ({"parts": {Part()}}, "^parts: must be a tuple of Part.* as a set has no order"),
        ({"parts": (part for part in [Part()])}, r"^parts: must be a tuple of Part\(\.\.\.\), not <generator"),
        ({"parts": None}, r"^parts: must be a tuple of Part\(\.\.\.\), not None"),
        ({"parts": ("model.top_k",)}, "^parts: must be a tuple of Part"),
        ({"margin": "0.01"}, "^margin: must be a number or None, not the text '0.01': leave out its quotes$"),
        ({"margin": float("nan")}, "^margin: must be a finite number, not nan$"),
        ({"margin": float("inf")}, "^margin: must be a finite number, not inf$"),
        ({"margin": [0.01]}, r"^margin: must be a number or None, not \[0.01\]$"),
        ({"margin": np.float32(0.01)}, "^margin: must be a number or None, not np.float32"),
        ({"count": 2.0}, "^count: must be a whole number, not 2.0$"),
        ({"count": np.int64(2)}, r"^count: must be a whole number, not np.int64\(2\)$"),
        ({"count": True}, "^count: must be a whole number, not True$"),
        ({"flag": 1}, "^flag: must be True or False, not 1$"),
        ({"kind": "some"}, "^kind: must be one of 'all', 'none' or a tuple of mappings, not 'some'$"),
        ({"seeds": 5}, "^seeds: must be a list of whole numbers, not 5$"),
        ({"seeds": {0, 1}}, "^seeds: .* as a set has no order"),
        ({"settings": [("a", 1)]}, "^settings: must be a mapping of names to values"),
        ({"pair": (1.0,)}, "^pair: must be a tuple of a number and a number"),
        ({"names": ("x" * 500, 3)}, r"^names: must be a tuple of texts, not .{60,100}$"),
    ],
)
def test_a_field_of_another_type_is_one_line(given: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        Declared(**given)


def test_what_fits_is_taken_and_lists_become_tuples() -> None:
    made = Declared(parts=[Part()], margin=1, seeds=range(3), kind=({"a": 1},), settings={"a": {"b": None}})
    assert made.parts == (Part(),) and made.seeds == range(3) and Declared(margin=np.float64(0.5)).margin == 0.5
