import pytest

from core.config.data import DataConfig
from core.data.corpora import load
from core.data.tasks import TASKS, examples
from core.data.tokenizers import ByteTokenizer
from core.errors import UserError

# Ten thousand words of 254 symbols take seconds to draw, and are drawn as those of `dyck` are.
NAMES = [pytest.param(name, marks=pytest.mark.slow) if name == "dyck_long" else name for name in TASKS]


@pytest.mark.parametrize("name", NAMES)
def test_examples_are_right_and_no_prompt_is_in_both_parts(name: str) -> None:
    made = examples(name)
    assert len(made.train) >= 7000 and len(made.held_out) >= 800
    assert not {prompt for prompt, _ in made.train} & {prompt for prompt, _ in made.held_out}
    for prompt, response in made.held_out[:200]:
        assert TASKS[name].correct(prompt, response)
        assert not TASKS[name].correct(prompt, response + "0") and not TASKS[name].correct(prompt, "")


def test_addition_holds_out_operand_pairs() -> None:
    made = examples("addition")
    assert len(made.train) + len(made.held_out) > 7900  # of 8100
    assert all(10 <= int(number) <= 99 for prompt, _ in made.train for number in prompt[:-1].split("+"))
    assert TASKS["addition"].correct("37+45=", "82") and not TASKS["addition"].correct("37+45=", "82 ")


@pytest.mark.parametrize(
    ("prompt", "response", "right"),
    [
        ("(_[_)=", "()[])", False),
        ("(_[_=", "()[]", True),
        ("__=", "[]", True),
        ("__=", "][", False),
        ("([_)=", "([])", True),
        ("([_)=", "([()", False),
        ("(_=", "[]", False),
        ("(___=", "(()", False),
    ],
)
def test_a_dyck_word_must_balance_and_keep_what_is_shown(prompt: str, response: str, right: bool) -> None:
    assert TASKS["dyck"].correct(prompt, response) is right


def test_other_tasks_by_example() -> None:
    assert TASKS["modular"].correct("3+9+0+8%7=", "6") and not TASKS["modular"].correct("3+9+0+8%7=", "20")
    assert TASKS["reverse"].correct("abc<", "cba") and TASKS["copy"].correct("abc>", "abc")


def test_a_task_is_a_corpus_of_prompts_and_responses() -> None:
    corpus = load(DataConfig(corpus="task:addition", sequence_length=16, validation_sequences=64))
    row, maskable = corpus.validation_T[:16], corpus.validation_maskable_T[:16]
    prompt, response = examples("addition").held_out[0]
    text = (prompt + response).encode()
    assert bytes(row[: len(text)].astype("uint8")) == text and (row[len(text) :] == ByteTokenizer.vocabulary.eos).all()
    assert maskable.tolist() == [False] * len(prompt) + [True] * (16 - len(prompt))
    assert corpus.aligned and corpus.fingerprint.startswith("task:addition:")
    with pytest.raises(UserError, match="'subtraction' is no task; use one of addition, modular"):
        load(DataConfig(corpus="task:subtraction"))
    with pytest.raises(UserError, match=r"task:dyck needs 26 tokens: raise data\.sequence_length=16"):
        load(DataConfig(corpus="task:dyck", sequence_length=16))
