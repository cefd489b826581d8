"""YAML as people read it: a key given twice is refused, and a number is the one that its digits say.

YAML 1.1, which PyYAML reads, takes 010 for 8, 1:30 for 90 and 1e3 for text. Here those are text, text and 1000, and dates
are text.
"""

import re
from typing import Any

import yaml

from core.errors import UserError

WHOLE = re.compile(r"[-+]?(?:0|[1-9][0-9_]*|0b[01_]+|0x[0-9a-fA-F_]+)$")
DECIMAL = re.compile(
    r"""[-+]?(?:[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?
    |[0-9][0-9_]*[eE][-+]?[0-9]+
    |\.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?
    |\.(?:inf|Inf|INF))$
    |\.(?:nan|NaN|NAN)$""",
    re.VERBOSE,
)
OTHERWISE = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float", "tag:yaml.org,2002:timestamp")


class _Loader(yaml.SafeLoader):
    """SafeLoader but for the numbers and keys that it gets wrong in silence."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """As of PyYAML. Raises UserError for a key that is given twice."""
        # Not when it is constructed: `<<` has been unfolded by then, and what it brings may be set again.
        node = super().compose_mapping_node(anchor)
        lines: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            line, name = key.start_mark.line + 1, (key.tag, str(key.value))
            if isinstance(key, yaml.ScalarNode) and name in lines:
                where = f"line {line}" if lines[name] == line else f"lines {lines[name]} and {line}"
                raise UserError(f"'{key.value}' is given twice, in {where}")
            lines[name] = line
        return node


_Loader.yaml_implicit_resolvers = {
    letter: [(tag, pattern) for tag, pattern in found if tag not in OTHERWISE]
    for letter, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _tag, _pattern, _letters in ((OTHERWISE[0], WHOLE, "-+0123456789"), (OTHERWISE[1], DECIMAL, "-+.0123456789")):
    _Loader.add_implicit_resolver(_tag, _pattern, list(_letters))


def parse(text: str) -> Any:
    """Parse a YAML text.

    Raises UserError for a key that is given twice, and yaml.YAMLError, ValueError or RecursionError for what can't be read.
    """
    return yaml.load(text, _Loader)
