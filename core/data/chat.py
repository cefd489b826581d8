"""Conversations as text: a chat template writes them, and says which parts of it are the assistant's."""

import os
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.data.specials import UNNAMED
from core.errors import UserError

if TYPE_CHECKING:
    from jinja2 import Template

ROLES = ("system", "user", "assistant")
TEMPLATES = {
    # As the models of the vocabulary that LLaDA-MoE has (157,184 ids) are prompted in their authors' dInfer, without the
    # system message "detailed thinking off", which can be put into the data.
    "roles": (
        "{% for message in messages %}"
        "<role>{{ 'HUMAN' if message.role == 'user' else message.role | upper }}</role>{{ message.content }}<|role_end|>"
        "{% endfor %}"
        "{% if add_generation_prompt %}<role>ASSISTANT</role>{% endif %}"
    ),
}

REASONING = ("reasoning_content", "thinking", "reasoning")  # names of what an assistant thought; the first counts

Turn = tuple[str, bool]  # a text, and whether it is a response


@lru_cache(maxsize=8)
def load_template(name: str) -> "Template":
    """A built-in template, or a jinja file such as a model's chat_template.jinja: it runs in a sandbox.

    It is to be rendered as transformers renders it, but knows neither chance nor the date: `strftime_now` is undefined.
    Raises UserError for one that is neither, and for one that is no jinja.
    """
    from core.data.templates import sandbox  # jinja2 (0.2 s), which only conversations need

    source = TEMPLATES.get(name)
    if source is None:
        path = Path(os.path.expanduser(name))
        try:
            source = path.read_text(encoding="utf-8")
        except (OSError, ValueError):  # no UTF-8, or a NUL in the path
            raise UserError(
                f"data.chat_template={name} is no readable file, nor built in: use {', '.join(TEMPLATES)} or a jinja file"
            ) from None
    try:
        return sandbox().from_string(source)
    except Exception as error:  # Python's own for a `break` outside of a loop
        raise UserError(f"data.chat_template={name} is no jinja template: {_line(error)}") from None


def turns(
    where: str,
    messages: Any,
    template_name: str,
    tokens: Mapping[str, str] = UNNAMED,
    shield: Callable[[str], str] = str,
) -> list[Turn]:
    """A conversation's text in pieces, the assistant's apart: `where` is what an error calls it.

    A response is what the template writes of an assistant's message after the generation prompt, its end marker included.
    tokens: what the template's `bos_token`, `eos_token` and the like are, as `special_tokens` finds them. shield: what is
    done to a message's texts, so that they have no special tokens. Raises UserError
    for messages without a role and content, a conversation that doesn't end with the assistant, and a template that writes
    earlier messages otherwise once there are later ones.
    """
    _check(where, messages)
    template, pieces, before = load_template(template_name), list[Turn](), ""
    handed = [_shielded(_handed(message), shield) for message in messages]

    def write(count: int, generate: bool) -> str:
        # Tools and documents are none, which is not the same to a template as their being undefined.
        given = {"messages": handed[:count], "tools": None, "documents": None, "add_generation_prompt": generate}
        return _render(where, template, template_name, {**tokens, **given})

    for index, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        prompt, done = write(index, True), write(index + 1, False)
        if not prompt.startswith(before) or not done.startswith(prompt):
            raise UserError(
                f"{where}: data.chat_template={template_name} doesn't write message {index + 1} behind those before it: what "
                "is the assistant's can't be told; use a template that only adds"
            )
        if str(message["content"]).strip() and not done[len(prompt) :].strip():
            raise UserError(
                f"{where}: data.chat_template={template_name} writes nothing of message {index + 1}, the assistant's"
            )
        pieces += [(prompt[len(before) :], False), (done[len(prompt) :], True)]
        before = done
    return pieces


def _check(where: str, messages: Any) -> None:
    if not isinstance(messages, list) or not messages:
        raise UserError(f'{where}: "messages" must be a list of {{"role": ..., "content": ...}}')
    for message in messages:
        fits = isinstance(message, dict) and isinstance(message.get("content"), str) and message.get("role") in ROLES
        if not fits:
            raise UserError(f'{where}: every message needs text under "content" and a "role" of {", ".join(ROLES)}')
    if messages[-1]["role"] != "assistant":
        raise UserError(f"{where} ends with a message of the {messages[-1]['role']}: the assistant's must be the last")


def _handed(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message as transformers hands it to templates: without what is null, its reasoning under all of its names."""
    said = {key: value for key, value in message.items() if value is not None}
    reasoning = next((said[name] for name in REASONING if name in said), None)
    return said if reasoning is None else {"thinking": reasoning} | said | {"reasoning_content": reasoning}


def _shielded(value: Any, shield: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return shield(value)
    if isinstance(value, dict):
        return {key: one if key == "role" else _shielded(one, shield) for key, one in value.items()}
    return [_shielded(one, shield) for one in value] if isinstance(value, list) else value


def _render(where: str, template: "Template", name: str, given: Mapping[str, Any]) -> str:
    try:
        return template.render(given)
    except Exception as error:  # whatever the template does with what it is given
        advice = "; write a date into it: today's would change the data" if "strftime_now" in str(error) else ""
        raise UserError(f"{where}: data.chat_template={name} refuses it: {_line(error)}{advice}") from None


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
