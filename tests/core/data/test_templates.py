"""Chat templates are rendered as transformers renders them, with the special tokens of the tokenizer."""

from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from core.data.chat import load_template, turns
from core.data.specials import special_tokens
from core.data.tokenizers import load_tokenizer
from core.errors import UserError

SPECIAL = ["<s>", "</s>", "<pad>", "[INST]"]
MESSAGES = [
    {"role": "user", "content": "<a & 'b'> \"é\" 世", "name": None},
    {"role": "assistant", "content": "2", "reasoning": "1 + 1"},
    {"role": "user", "content": "Three?"},
    {"role": "assistant", "content": "3"},
]
WRITTEN = {
    "json": "{% for m in messages %}{{ m | tojson }}{{ m.content | tojson }}{% endfor %}",
    "json, its options": (
        "{% for m in messages %}{{ m | tojson(indent=1, sort_keys=true) }}{{ m.content | tojson(true, none, (',', ':')) }}"
        "{% endfor %}"
    ),
    "bos once, eos in each": (
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST]{{ m.content }}[INST]{% else %}"
        "{{ m.content + eos_token }}{% endif %}{% endfor %}"
    ),
    "bos in each": (
        "{%- for m in messages %}\n    {%- if m.role == 'user' %}\n        {{- bos_token + '[INST]' + m.content }}\n"
        "    {%- else %}\n        {{- ' ' ~ m.content ~ ' ' ~ eos_token }}\n    {%- endif %}\n{%- endfor %}"
    ),
    "other tokens": "{{ pad_token }}{{ image_token }}{% if unk_token is defined %}!{% endif %}{{ add_bos_token }}"
    "{% for m in messages %}{{ m.content }}{% endfor %}",
    "marked, with loop controls": (
        "{% for m in messages %}\n{% for w in m.content %}\n{% if w == 'h' %}{% continue %}{% endif %}\n"
        "{% if w == 'r' %}{% break %}{% endif %}\n{{ w }}{% endfor %}\n"
        "{% set end = '.' %}{% generation %}\n{% set end = '!' %}{{ end }}\n  {% endgeneration %}\n{{ end }}{% endfor %}"
    ),
    "nothing but messages": (
        "{% if tools is not none %}tools{% endif %}{% if documents is defined and documents is none %}none{% endif %}"
        "{% for m in messages %}{{ m.keys() | list }}{{ m.reasoning_content }}{{ m.thinking }}{% endfor %}"
    ),
    "namespaces": (
        "{% set ns = namespace(n=0, self='s') %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{{ ns.n }}{{ ns.self }}"
        "{{ dict(m, n=ns.n)['n'] }}{{ dict.fromkeys('ab', 1) }}{% endfor %}"
    ),
}


def published(folder: Path, template: str = "", **named: str):
    """A tokenizer of bytes in a folder, as transformers saves one, and transformers' own reading of it."""
    transformers = pytest.importorskip("transformers")
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, []))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer.add_special_tokens(SPECIAL)
    named = {"bos_token": "<s>", "eos_token": "</s>"} | named
    made = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=template, **named)
    made.save_pretrained(folder)
    return transformers.PreTrainedTokenizerFast.from_pretrained(folder)


@pytest.mark.parametrize("template", WRITTEN.values(), ids=WRITTEN)
def test_text_and_ids_are_those_of_transformers(tmp_path: Path, template: str) -> None:
    theirs = published(tmp_path, template, pad_token="<pad>", image_token="[INST]")
    name = str(tmp_path / "tokenizer.json")
    pieces = turns("x", MESSAGES, str(tmp_path / "chat_template.jinja"), special_tokens(name))
    assert "".join(text for text, _ in pieces) == theirs.apply_chat_template(MESSAGES, tokenize=False)
    ids = np.concatenate([load_tokenizer(name).encode("x", text.encode()) for text, _ in pieces])
    assert ids.tolist() == theirs.apply_chat_template(MESSAGES, return_dict=False)
    assert (ids == theirs.bos_token_id).sum() == template.count("{{ bos_token }}") + 2 * template.count("bos_token + ")


@pytest.mark.parametrize(
    ("template", "expected"),
    [("{{ strftime_now('%Y') }}", "refuses it: 'strftime_now' is undefined; write a date into it"),
     ("{{ [1, 2] | random }}", "no jinja template: No filter named 'random'"),
     ("{{ lipsum() }}", "refuses it: 'lipsum' is undefined"),
     ("{% break %}", "no jinja template: 'break' outside loop"),
     ("{{ dict.update(messages[0], content='x') }}", "refuses it: .*no attribute 'update'"),
     ("{% set ns = namespace(__class__=3) %}", "refuses it: a namespace takes no attribute that begins with an underscore"),
     ("{% set ns = namespace() %}{% set ns._x = 3 %}", "refuses it: a namespace takes no attribute"),
     ("{{ raise_exception('one\ntwo') }}", "refuses it: one two")],
)  # fmt: skip
def test_what_a_template_may_not_do_is_refused_in_one_line(tmp_path: Path, template: str, expected: str) -> None:
    (tmp_path / "t.jinja").write_text(template)
    with pytest.raises(UserError, match=expected) as refused:
        turns("x:1", MESSAGES, str(tmp_path / "t.jinja"))
    assert "data.chat_template=" in str(refused.value) and "\n" not in str(refused.value)


def test_a_template_that_asks_whether_it_may_know_the_date_is_told_no(tmp_path: Path) -> None:
    (tmp_path / "t.jinja").write_text(
        "{% if strftime_now is defined %}{{ strftime_now('%Y') }}{% else %}2024{% endif %}"
        "{% for m in messages %}{{ m.content }}{% endfor %}"
    )
    assert turns("x", MESSAGES, str(tmp_path / "t.jinja"))[0][0].startswith("2024")


def test_a_template_is_read_once_whatever_the_tokens(tmp_path: Path) -> None:
    name = str(tmp_path / "t.jinja")
    Path(name).write_text("{{ bos_token }}{{ messages | map(attribute='content') | join }}")
    assert [turns("x", MESSAGES[:2], name, {"bos_token": bos})[0][0][:3] for bos in ("<s>", "[B]")] == ["<s>", "[B]"]
    assert turns("x", MESSAGES[:2], name)[0][0] == MESSAGES[0]["content"]
    assert load_template(name) is load_template(name)
