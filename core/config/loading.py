"""Reading settings: from files and `key=value` arguments into a checked config.

Unknown keys, wrong types and impossible values are refused here, in one line each, before anything is computed.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from functools import cache, partial
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from core import plugins
from core.config.model import ROUTERS
from core.config.objective import OBJECTIVES
from core.config.run import RunConfig, known_keys
from core.errors import UserError
from core.registry import nearest
from core.runtime.json_files import LARGEST
from core.runtime.units import NUMERAL

MOST_VALUES = 100_000  # in a file
LONGEST = 400  # characters of a value or of OmegaConf's complaint, said whole

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
    """YAML as people read it: a key given twice is refused, and a number is the one that its digits say.

    YAML 1.1, which PyYAML reads, takes 010 for 8, 1:30 for 90 and 1e3 for text. Here those are text, text and 1000, and
    dates are text.
    """

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


def parse_yaml(text: str) -> Any:
    """A YAML text's content. Raises UserError for a key given twice, else yaml.YAMLError, ValueError or RecursionError."""
    return yaml.load(text, _Loader)


def parse_overrides(arguments: Sequence[str]) -> dict[str, Any]:
    """Command-line `key=value` settings by key, values read as YAML; of a key's, the last counts. Raises UserError."""
    settings: dict[str, Any] = {}
    for argument in arguments:
        key, separator, text = argument.partition("=")
        if not separator or not key:
            raise UserError(f"'{argument}' is not a setting: write key=value, such as trainer.steps=100")
        try:
            settings[key] = parse_yaml(text)
        except UserError as error:
            raise UserError(f"{key}: {error}") from None
        except (yaml.YAMLError, ValueError, RecursionError):  # a day that there isn't, a number of 5000 digits, nesting
            raise UserError(
                f"{key}: can't read the value '{_short(text)}'; quote text that has special characters"
            ) from None
    return settings


def build(*layers: Mapping[str, Any]) -> RunConfig:
    """Merge settings, later ones over earlier ones, into a checked config.

    Keys may be dotted ("model.top_k") and values nested mappings. Raises UserError for unknown keys, wrong types and
    impossible values.
    """
    merged = deepcopy(_defaults())
    for layer in _with_plugins(layers):
        flat: dict[str, Any] = {}
        for key, value in flatten(layer):
            _check_known(key)
            _check_plain(key, value)
            if key in flat:
                raise UserError(f"{key} is given twice, nested and with dots: leave one of the two out")
            flat[key] = value
        try:
            merged = OmegaConf.unsafe_merge(merged, nested(flat))  # unsafe: in place, as copies take long
        except OmegaConfBaseException as error:
            raise UserError(_misfit(error, flat)) from None
    try:
        config = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        raise UserError(_first_line(error)) from None
    assert isinstance(config, RunConfig)
    return config


def _with_plugins(layers: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    """Layers with the plugins of all of them, which are imported: their kinds have to be known before configs are checked."""
    written = [each for layer in layers for each in _listed(layer.get("plugins", ()))]
    required = list(dict.fromkeys(plugins.require(written)))
    for key, registry in (("model.router.kind", ROUTERS), ("objective.kind", OBJECTIVES)):
        kinds = [kind for layer in layers if isinstance(kind := _given(layer, key), str)]
        if kinds and kinds[-1] not in registry:
            required += plugins.installed(partial(registry.__contains__, kinds[-1]))
    return (*layers, {"plugins": required}) if required else layers


def _given(layer: Mapping[str, Any], key: str) -> Any:
    """A value of a layer by its dotted key, whether it is written nested or not."""
    section, _, rest = key.partition(".")
    inside = layer.get(section)
    return layer.get(key) or (_given(inside, rest) if rest and isinstance(inside, Mapping) else None)


def _listed(value: Any) -> Sequence[str]:
    if isinstance(value, str) or not all(isinstance(each, str) for each in value):
        raise UserError(f"plugins: a list of files and packages is needed, such as [my_router.py], not {_short(value)}")
    return list(value)


@cache
def _defaults() -> Any:
    return OmegaConf.structured(RunConfig)


def _misfit(error: OmegaConfBaseException, flat: Mapping[str, Any]) -> str:
    # Of a list's element OmegaConf names no key.
    key = error.full_key or next(key for key, value in flat.items() if isinstance(value, list | tuple))
    said = _first_line(error)
    foreign = len(said) > LONGEST or "$" in said or "Config" in said  # OmegaConf's own words
    said = f"'{_short(flat[key])}' doesn't fit" if foreign else said
    hint = "" if "expected" in said else f"; expected {_expected(known_keys()[key])}"
    return f"{key}: {said}{hint}"


def load(path: Path, overrides: Mapping[str, Any] | None = None) -> RunConfig:
    """Read a config file (YAML; keys that it leaves out keep their defaults) and set `overrides` over it."""
    return build(read_yaml(path), overrides or {})


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file that holds a mapping, or a UserError that names the file."""
    try:
        content = parse_yaml(path.read_text(encoding="utf-8"))
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except FileNotFoundError:
        raise UserError(f"no such config file: {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"can't read {path}: {error}") from None
    except RecursionError:
        raise UserError(f"{path} is nested too deeply") from None
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"{path} is not YAML: {_first_line(error)}") from None
    if _is_endless(content):
        raise UserError(f"{path}: its anchors (&) and aliases (*) unfold to more than {MOST_VALUES} values")
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold a mapping of config keys, such as 'model: {{top_k: 2}}'")
    return content


def _is_endless(content: Any) -> bool:
    """True if it holds more values than a config: aliases repeat what they name, and may name themselves."""
    left, seen = [content], 0
    while left and seen <= MOST_VALUES:
        value, seen = left.pop(), seen + 1
        if isinstance(value, dict | list):
            left.extend(value.values() if isinstance(value, dict) else value)
    return bool(left)


def flatten(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, value) for the leaves of nested settings."""
    for key, value in settings.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from flatten(value, f"{path}.")
        else:
            yield path, value


def nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with dotted keys as nested dictionaries: the inverse of `flatten`."""
    content: dict[str, Any] = {}
    for key, value in flat.items():
        *sections, last = key.split(".")
        place = content
        for section in sections:
            place = place.setdefault(section, {})
        place[last] = value
    return content


def _check_known(key: str) -> None:
    known = known_keys()
    if key in known:
        return
    if key == "stages":
        raise UserError("stages are several configs, not one: `ablate train FILE` trains them")
    if inside := [name for name in known if name.startswith(f"{key}.")]:
        raise UserError(f"{key} is a section, not a value: set one of its keys, such as {inside[0]}")
    raise UserError(f"unknown config key '{key}': {nearest(key, known)}")


def _check_plain(key: str, value: Any) -> None:
    kind = known_keys()[key]
    if isinstance(value, str) and "${" in value:  # a config is logged whole: it takes nothing from the environment
        raise UserError(f"{key}: '${{...}}' is not read here; write the value itself")
    if kind is bool and not isinstance(value, bool):
        raise UserError(f"{key}: '{_short(value)}' is not true or false")
    # YAML 1.1 reads on/yes/off/no as booleans, and a boolean passes for an int.
    if kind is not bool and isinstance(value, bool):
        raise UserError(f"{key}: true/false (or yes/no/on/off) given; expected {_expected(kind)}")
    if isinstance(value, int) and abs(value) >= LARGEST:
        raise UserError(f"{key}: a number of {len(str(abs(value)))} digits is too large")
    names = get_args(kind) if get_origin(kind) is Literal else ()
    if names and isinstance(names[0], str) and value not in (*names, None):
        raise UserError(f"{key}: Invalid value '{_short(value)}', expected one of {list(names)}")
    scalar = get_args(kind)[0] if NoneType in get_args(kind) else kind
    digits = scalar in (int, float) and isinstance(value, str)
    # float() takes inf and 1e400 too, and int() takes 010 and 1_0.
    if digits and NUMERAL.fullmatch(value) is None:
        raise UserError(f"{key}: '{_short(value)}' is text; expected {_expected(kind)}")
    if (digits or isinstance(value, float)) and not math.isfinite(float(value)):
        raise UserError(f"{key}: must be a finite number, not {_short(value)}")
    if scalar is str and isinstance(value, int | float):
        raise UserError(
            f"{key}: {value} is a number; expected {_expected(kind)} (on a command line in quotes twice, '\"...\"')"
        )


def _expected(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return f"one of {', '.join(map(str, get_args(kind)))}"
    simple = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
    if kind == tuple[str, ...]:
        return "a list of texts"
    if get_origin(kind) is tuple:
        return "a list of whole numbers, such as [0, 1]"
    if NoneType in get_args(kind):
        return f"{_expected(get_args(kind)[0])} or null"
    return simple[kind]


def _short(value: Any) -> str:
    said = str(value)
    return said if len(said) <= LONGEST else f"{said[:60]} ..."


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]


def text(level: str | int | float | bool | None) -> str:
    """A value as people write it: true, none, 0.001, film."""
    if level is None or isinstance(level, bool):
        return str(level).lower()
    return f"{level:g}" if isinstance(level, float) and float(f"{level:g}") == level else str(level)
