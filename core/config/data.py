"""Configuration of the corpus and its sequences."""

from dataclasses import dataclass

from core.errors import require, require_limit


@dataclass(frozen=True)
class DataConfig:
    """Corpus, tokenizer, sequence lengths and the held-out part.

    On a share of the steps (`variable_length_share`) the whole batch has one length l ~ U[variable_length_min,
    sequence_length], so that no padding is computed (LLaDA-MoE, arXiv 2509.24389, Sec. 3).
    """

    # stdlib, shakespeare, text:PATH, hf:NAME, tokens:PATH, instructions:FILE, preferences:FILE, task:NAME, a synthetic
    # source, or a weighted mixture such as "0.7*stdlib + 0.3*text:PATH"
    corpus: str = "stdlib"
    tokenizer: str = "bytes"  # bytes, or the path of a tokenizer.json
    sequence_length: int = 128  # tokens per sequence
    validation_sequences: int = 128  # held-out sequences per validation
    held_out_share: float | None = None  # share of the data, by size, to hold out; null: by file names, else a tenth
    variable_length_share: float = 0.0  # share of the steps whose batch has a random, shorter length
    variable_length_min: int = 8  # shortest such length
    packing: bool = False  # put several prompts and responses into one sequence; they don't attend to one another
    chat_template: str = "roles"  # template of `messages` in instructions: a built-in one, or the path of a jinja file

    def __post_init__(self) -> None:
        require(self.sequence_length >= 2, f"data.sequence_length must be at least 2, not {self.sequence_length}")
        require_limit(self, "data", "be at least 1", "validation_sequences")
        require_limit(self, "data", "lie in (0, 1)", "held_out_share")
        require_limit(self, "data", "lie in [0, 1]", "variable_length_share")
        require(
            not self.variable_length_share or 2 <= self.variable_length_min <= self.sequence_length,
            f"data.variable_length_min={self.variable_length_min} must lie in 2..data.sequence_length="
            f"{self.sequence_length}",
        )
