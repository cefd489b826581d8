"""The special tokens that a published tokenizer names beside its tokenizer.json, as chat templates are given them."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from core.errors import UserError
from core.runtime.json_files import once

CONFIG, MAP = "tokenizer_config.json", "special_tokens_map.json"
UNNAMED: Mapping[str, str] = {"bos_token": "", "eos_token": ""}  # what templates are given where no file names any
# The names that transformers has for every tokenizer; models add their own, which end in _token too.
NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


def special_tokens(tokenizer: str) -> Mapping[str, str]:
    """Special tokens by name, from the tokenizer_config.json and special_tokens_map.json beside what `data.tokenizer` names.

    As in transformers, the second counts for more unless the first lists its added tokens, and what neither names is left
    out. Bytes, and a tokenizer.json alone, have an empty `bos_token` and `eos_token`. Raises UserError for files that can't
    be read and for a token that is neither text nor an object with "content".
    """
    if tokenizer == "bytes":
        return UNNAMED
    folder = Path(os.path.expanduser(tokenizer)).parent
    config, legacy = (_read(tokenizer, folder / name) for name in (CONFIG, MAP))
    if config is None and legacy is None:
        return UNNAMED
    named = {**(config or {})}
    if "added_tokens_decoder" not in named:
        named |= legacy or {}
    extra = named.get("extra_special_tokens") or named.get("additional_special_tokens")
    tokens = {}
    for name, value in [*named.items(), *(extra.items() if isinstance(extra, dict) else ())]:
        if isinstance(value, dict):
            value = value.get("content", value)
        known = name in NAMES or (isinstance(extra, dict) and name in extra)
        if isinstance(value, str) and any("\ud800" <= letter <= "\udfff" for letter in value):
            raise UserError(f"data.tokenizer={tokenizer}: {name} of the files beside it is no Unicode text")
        if isinstance(value, str) and (known or name.endswith("_token")):
            tokens[name] = value
        elif known and value is not None:
            raise UserError(
                f'data.tokenizer={tokenizer}: {name} of the files beside it is neither text nor an object with "content"'
            )
    return tokens


def _read(tokenizer: str, path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=once)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"data.tokenizer={tokenizer}: {path.name} beside it can't be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"data.tokenizer={tokenizer}: {path.name} beside it is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"data.tokenizer={tokenizer}: {path.name} beside it must be an object")
    return content
