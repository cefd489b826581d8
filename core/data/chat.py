"""Conversations as text: a chat template writes them, and says which parts of it are the assistant's."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

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

Message = Mapping[str, str]
Turn = tuple[str, bool]  # a text, and whether it is a response


@lru_cache(maxsize=8)
def load_template(name: str) -> "Template":
    """A built-in template, or a jinja file such as a model's chat_template.jinja: it runs in a sandbox.

    It is given `messages` and `add_generation_prompt`, empty `bos_token` and `eos_token` (an end token is put behind every
    conversation), and `raise_exception`. Raises UserError for one that is neither, and for one that is no jinja.
    """
    from jinja2 import TemplateError  # only conversations need it
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    source = TEMPLATES.get(name)
    if source is None:
        path = Path(name).expanduser()
        try:
            source = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            raise UserError(
                f"data.chat_template={name} is no readable file, nor built in: use {', '.join(TEMPLATES)} or a jinja file"
            ) from None
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)  # as transformers' are rendered
    environment.globals |= {"raise_exception": _refuse, "bos_token": "", "eos_token": ""}
    try:
        return environment.from_string(source)
    except TemplateError as error:
        raise UserError(f"data.chat_template={name} is no jinja template: {error}") from None


def turns(where: str, messages: Any, template_name: str) -> list[Turn]:
    """A conversation's text in pieces, the assistant's apart: `where` is what an error calls it.

    A response is what the template writes of an assistant's message after the generation prompt, its end marker included.
    Raises UserError for messages without a role and content, a conversation that doesn't end with the assistant, and a
    template that writes earlier messages otherwise once there are later ones.
    """
    _check(where, messages)
    template, pieces, before = load_template(template_name), list[Turn](), ""
    for index, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        prompt = _render(where, template, template_name, messages[:index], True)
        done = _render(where, template, template_name, messages[: index + 1], False)
        if not prompt.startswith(before) or not done.startswith(prompt):
            raise UserError(
                f"{where}: data.chat_template={template_name} doesn't write message {index + 1} behind those before it: what "
                "is the assistant's can't be told; use a template that only adds"
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


def _render(where: str, template: "Template", name: str, messages: Sequence[Message], generate: bool) -> str:
    try:
        return template.render(messages=messages, add_generation_prompt=generate)
    except Exception as error:  # whatever the template does with what it is given
        raise UserError(f"{where}: data.chat_template={name} refuses it: {error}") from None


def _refuse(message: str) -> NoReturn:
    from jinja2 import TemplateError

    raise TemplateError(message)
