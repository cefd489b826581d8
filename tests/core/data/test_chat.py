"""Chat templates: what is written, and whose it is."""

import json
from pathlib import Path

import pytest

from core.config.data import DataConfig
from core.data.chat import turns
from core.data.corpora import load
from core.errors import UserError

MESSAGES = [
    {"role": "system", "content": "Be short."},
    {"role": "user", "content": "Two?"},
    {"role": "assistant", "content": "2"},
    {"role": "user", "content": "Three?"},
    {"role": "assistant", "content": "3"},
]
WRITTEN = (
    "<role>SYSTEM</role>Be short.<|role_end|><role>HUMAN</role>Two?<|role_end|><role>ASSISTANT</role>",
    "2<|role_end|>",
    "<role>HUMAN</role>Three?<|role_end|><role>ASSISTANT</role>",
    "3<|role_end|>",
)


def test_the_built_in_template_and_its_responses() -> None:
    assert turns("x", MESSAGES, "roles") == list(zip(WRITTEN, (False, True, False, True), strict=True))


def test_a_template_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "chat.jinja"
    path.write_text(
        "{{ bos_token }}{% for m in messages %}\n[{{ m['role'] }}] {{ m['content'] | trim }}\n{% endfor %}\n"
        "{% if add_generation_prompt %}\n[assistant]{% endif %}"
    )
    assert turns("x", MESSAGES[1:3], str(path)) == [("[user] Two?\n[assistant]", False), (" 2\n", True)]


def test_only_responses_may_be_masked(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("\n".join([json.dumps({"messages": MESSAGES})] * 20))
    config = DataConfig(corpus=f"instructions:{tmp_path / 'a.jsonl'}", sequence_length=256, validation_sequences=1)
    corpus = load(config)
    row, maskable = corpus.train_T[:256], corpus.train_maskable_T[:256]
    whole = "".join(WRITTEN).encode()
    assert bytes(row[: len(whole)].tolist()) == whole and set(row[len(whole) :].tolist()) == {257}
    assert bytes(row[: len(whole)][maskable[: len(whole)]].tolist()) == (WRITTEN[1] + WRITTEN[3]).encode()
    assert maskable[len(whole) :].all()  # where to end is learned, as of pairs


@pytest.mark.parametrize(
    ("messages", "template", "expected"),
    [([], "roles", '"messages" must be a list'),
     ([{"role": "user", "content": 3}], "roles", 'every message needs text under "content"'),
     ([{"role": "tool", "content": "x"}], "roles", '"role" of system, user, assistant'),
     (MESSAGES[:2], "roles", "x:1 ends with a message of the user"),
     (MESSAGES, "nosuch", "data.chat_template=nosuch is no readable file, nor built in: use roles"),
     (MESSAGES, "{% if %}", "is no jinja template"),
     (MESSAGES, "{{ messages[-1].content }}{% if add_generation_prompt %}A{% endif %}", "doesn't write message 3 behind"),
     (MESSAGES, "{# nothing #}", "writes nothing of message 3, the assistant's"),
     (MESSAGES, "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}",
      "writes nothing of message 3, the assistant's"),
     (MESSAGES, "{{ raise_exception('no system message') }}", "refuses it: no system message"),
     (MESSAGES, "{{ messages.__class__.__mro__[1].__subclasses__() }}", "refuses it: access to attribute '__class__'"),
     (MESSAGES, "{{ messages.append(1) }}", "refuses it: .*append"),
     (MESSAGES, "{% for i in range(10000000) %}x{% endfor %}", "refuses it: [Rr]ange too big")],
)  # fmt: skip
def test_bad_conversations_and_templates_are_refused(tmp_path: Path, messages, template: str, expected: str) -> None:
    if "{" in template:
        (tmp_path / "t.jinja").write_text(template)
        template = str(tmp_path / "t.jinja")
    with pytest.raises(UserError, match=expected):
        turns("x:1", messages, template)


def test_a_template_needs_messages_to_write() -> None:
    with pytest.raises(UserError, match="data.chat_template=x.jinja means nothing to data.corpus=stdlib"):
        load(DataConfig(chat_template="x.jinja"))


def test_a_line_of_messages_and_a_prompt_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text('{"prompt": "a", "messages": []}')
    with pytest.raises(UserError, match='has "messages" and "prompt": keep one of them'):
        load(DataConfig(corpus=f"instructions:{tmp_path / 'x.jsonl'}"))
