"""Special tokens: read from beside a tokenizer.json, one id each, and one end token behind a conversation."""

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from core.config.data import DataConfig
from core.data.corpora import load
from core.data.corpus import Corpus
from core.data.specials import special_tokens
from core.errors import UserError

BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())
BOS, EOS = 256, 257
MESSAGES = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
PLAIN = "{% for m in messages %}{{ m.content }}{% endfor %}"
CLOSED = (
    "{{ bos_token }}{% for m in messages %}{{ m.content }}{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}"
    "{% endfor %}"
)


def tokenizer(folder: Path, *added: str, **files: object) -> str:
    """A tokenizer.json of bytes, and the files beside it. Returns its path."""
    folder.mkdir(exist_ok=True)
    made = Tokenizer(models.BPE({c: i for i, c in enumerate(BYTES)}, []))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    made.add_special_tokens(list(added or ("<s>", "</s>")))
    made.save(str(folder / "tokenizer.json"))
    for name, content in files.items():
        (folder / f"{name}.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return str(folder / "tokenizer.json")


def read(
    folder: Path, tokenizer_name: str, row: dict, template: str = "", packing: bool = True, length: int = 8
) -> Corpus:
    """Instructions of one row, forty times, read by a chat template where one is given."""
    (folder / "data.jsonl").write_text("\n".join([json.dumps(row)] * 40))
    (folder / "t.jinja").write_text(template)
    config = DataConfig(
        corpus=f"instructions:{folder / 'data.jsonl'}", tokenizer=tokenizer_name, sequence_length=length,
        chat_template=str(folder / "t.jinja") if template else None, validation_sequences=1, packing=packing,
    )  # fmt: skip
    return load(config)


def corpus(folder: Path, template: str, tokenizer_name: str, packing: bool = True, messages=MESSAGES) -> Corpus:
    return read(folder, tokenizer_name, {"messages": messages}, template, packing)


@pytest.mark.parametrize(
    ("files", "expected"),
    [({}, {"bos_token": "", "eos_token": ""}),
     ({"tokenizer_config": {"bos_token": "<s>", "eos_token": {"__type": "AddedToken", "content": "</s>"},
                            "add_bos_token": True}},
      {"bos_token": "<s>", "eos_token": "</s>"}),
     ({"tokenizer_config": {"bos_token": None, "eos_token": "</s>"}}, {"eos_token": "</s>"}),
     ({"special_tokens_map": {"bos_token": {"content": "<s>", "lstrip": False}}}, {"bos_token": "<s>"}),
     ({"tokenizer_config": {"bos_token": "<x>", "sep_token": "</s>"}, "special_tokens_map": {"bos_token": "<s>"}},
      {"bos_token": "<s>", "sep_token": "</s>"}),
     ({"tokenizer_config": {"bos_token": "<s>", "added_tokens_decoder": {}}, "special_tokens_map": {"bos_token": "</s>"}},
      {"bos_token": "<s>"}),
     ({"tokenizer_config": {"image_token": "<s>", "extra_special_tokens": {"eoi": "</s>"}, "padding_side": "left"}},
      {"image_token": "<s>", "eoi": "</s>"}),
     ({"tokenizer_config": {"eos_token": "</s>", "extra_special_tokens": ["<s>"]}}, {"eos_token": "</s>"})],
)  # fmt: skip
def test_tokens_are_those_that_transformers_gives_templates(tmp_path: Path, files, expected: dict[str, str]) -> None:
    name = tokenizer(tmp_path, **files)
    assert special_tokens(name) == expected
    if files:
        transformers = pytest.importorskip("transformers")
        assert transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path).special_tokens_map == expected


def test_bytes_have_none() -> None:
    assert special_tokens("bytes") == {"bos_token": "", "eos_token": ""}


@pytest.mark.parametrize(
    ("content", "expected"),
    [("{", "tokenizer_config.json beside it is not JSON"),
     ("[]", "tokenizer_config.json beside it must be an object"),
     ({"bos_token": 3}, "bos_token of the files beside it is neither text nor an object"),
     ({"bos_token": {"text": "<s>"}}, "bos_token of the files beside it is neither text nor an object")],
)  # fmt: skip
def test_files_that_name_none_are_refused(tmp_path: Path, content, expected: str) -> None:
    name = tokenizer(tmp_path, tokenizer_config=content)
    with pytest.raises(UserError, match=f"^data.tokenizer={name}: {expected}"):
        special_tokens(name)


NAMED = {"bos_token": "<s>", "eos_token": "</s>"}
A, B = BYTES.index("a"), BYTES.index("b")


@pytest.mark.parametrize(
    "template",
    [
        CLOSED,
        CLOSED.replace("{{ eos_token }}", ""),
        CLOSED.replace("eos_token", "'</s>'"),
        CLOSED.replace("{{ eos_token }}", "{{ eos_token + '\\n' }}"),
    ],
)
def test_one_token_begins_a_conversation_and_one_ends_it(tmp_path: Path, template: str) -> None:
    packed = corpus(tmp_path, template, tokenizer(tmp_path, tokenizer_config=NAMED))
    assert packed.train_T[:8].tolist() == [BOS, A, B, EOS] * 2
    assert packed.train_maskable_T[:8].tolist() == [False, False, True, True] * 2
    assert packed.train_segments_T[:8].tolist() == [1] * 4 + [2] * 4


def test_the_end_token_that_the_tokenizer_names_closes_a_conversation(tmp_path: Path) -> None:
    name = tokenizer(tmp_path, "<s>", "</s>", "<end>", tokenizer_config=NAMED | {"eos_token": "<end>"})
    assert corpus(tmp_path, CLOSED, name, packing=False).train_T[:6].tolist() == [BOS, A, B, 258, 258, 258]


def test_a_response_that_ends_with_the_end_token_has_one(tmp_path: Path) -> None:
    row, name = {"prompt": "a", "response": "ba</s>"}, tokenizer(tmp_path)
    assert read(tmp_path, name, row).train_T[:8].tolist() == [A, B, A, EOS] * 2
    assert read(tmp_path, name, row, length=4).train_T[:4].tolist() == [A, B, A, EOS]  # and takes one's room


def test_special_tokens_in_prompts_and_responses_are_text(tmp_path: Path) -> None:
    found = read(tmp_path, tokenizer(tmp_path), {"prompt": "a</s>", "response": "<s>b"}, packing=False, length=16)
    assert found.train_T[:10].tolist() == [*map(BYTES.index, "a</s><s>b"), EOS]


def test_special_tokens_in_messages_are_text_and_a_templates_are_tokens(tmp_path: Path) -> None:
    row = {"messages": [MESSAGES[0] | {"content": "</s>"}, MESSAGES[1] | {"content": "<s>b"}]}
    found = read(tmp_path, tokenizer(tmp_path, tokenizer_config=NAMED), row, CLOSED, packing=False, length=16)
    assert found.train_T[:10].tolist() == [BOS, *map(BYTES.index, "</s><s>b"), EOS]
    assert found.train_maskable_T[:6].tolist() == [False] * 5 + [True]


def test_a_template_that_writes_the_mask_is_refused(tmp_path: Path) -> None:
    name = tokenizer(tmp_path, "<s>", "</s>", "<|mask|>", tokenizer_config=NAMED)
    with pytest.raises(
        UserError, match="data.jsonl:1: data.chat_template writes the mask token, which can't be learned"
    ):
        corpus(tmp_path, "<|mask|>" + PLAIN, name)


def test_an_empty_response_has_an_end_token(tmp_path: Path) -> None:
    messages = [MESSAGES[0] | {"content": "ab"}, MESSAGES[1] | {"content": ""}]
    assert corpus(tmp_path, PLAIN, tokenizer(tmp_path), messages=messages).train_T[:6].tolist() == [A, B, EOS] * 2


def test_the_fingerprint_changes_with_the_text_alone(tmp_path: Path) -> None:
    bare = tokenizer(tmp_path / "bare")
    named = tokenizer(tmp_path / "named", tokenizer_config=NAMED)
    other = tokenizer(tmp_path / "other", tokenizer_config=NAMED | {"pad_token": "</s>"})
    assert len({corpus(tmp_path, CLOSED, name).fingerprint for name in (bare, named)}) == 2
    assert len({corpus(tmp_path, CLOSED, name).fingerprint for name in (named, other)}) == 1
    (tmp_path / "plain").mkdir()
    assert len({corpus(tmp_path / "plain", PLAIN, name).fingerprint for name in (bare, named)}) == 1


def test_a_special_token_that_would_be_read_as_letters_is_refused_where_it_is_written(tmp_path: Path) -> None:
    name = tokenizer(tmp_path, "</s>", tokenizer_config=NAMED)
    with pytest.raises(UserError, match=r"data.jsonl:1: data.tokenizer=.* doesn't read <s>, its bos_token, as one id"):
        corpus(tmp_path, CLOSED, name)
    (tmp_path / "plain").mkdir()
    assert corpus(tmp_path / "plain", PLAIN, name).train_T[:3].tolist() == [A, B, 256]
