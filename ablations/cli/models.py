"""A trained network by its folder, and what turns its tokens into text and back."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from core.config import ModelConfig
from core.data.documents import TEXTS
from core.data.mixtures import PAIRS, kinds
from core.data.tokenizers import Tokenizer, load_tokenizer
from core.errors import UserError
from core.interchange.huggingface import load as load_hf
from core.model.transformer import Denoiser
from core.training.weights import open_run

HOLE = "░"  # how a mask is shown, and written in a prompt


@dataclass(frozen=True)
class Opened:
    """A network in evaluation mode; tokenizer None: its tokens are shown as numbers."""

    denoiser: Denoiser
    tokenizer: Tokenizer | None

    @property
    def config(self) -> ModelConfig:
        return self.denoiser.config

    def encode(self, text: str) -> list[int]:
        """A prompt's tokens: of text, or of numbers where there is no tokenizer; ░ is a mask. Raises UserError."""
        parts = text.split(HOLE)
        if len(parts) > 1 and self.config.mask_id is None:
            raise UserError(f"the prompt has {HOLE}, and the model has no mask token (model.mask_id is none)")
        mask = [] if self.config.mask_id is None else [self.config.mask_id]
        encoded = [self._encode_part(part) for part in parts]
        return encoded[0] + [token for part in encoded[1:] for token in (*mask, *part)]

    def _encode_part(self, text: str) -> list[int]:
        if self.tokenizer is not None:
            return self.tokenizer.encode("the prompt", text.encode()).tolist() if text else []
        try:
            return [int(word) for word in text.split()]
        except ValueError:
            raise UserError(
                f"the model's tokens are numbers: write a prompt such as '3 0 12', or name a --tokenizer; not '{text}'"
            ) from None

    def decode(self, tokens: Sequence[int]) -> str:
        """Tokens as text, masks as ░."""
        if self.tokenizer is None:
            return " ".join(HOLE if token == self.config.mask_id else str(token) for token in tokens)
        text = ""
        run: list[int] = []
        for token in tokens:
            if token == self.config.mask_id:
                text += (self.tokenizer.decode(run) if run else "") + HOLE
                run = []
            else:
                run.append(int(token))
        return text + (self.tokenizer.decode(run) if run else "")


def open_model(folder: Path, tokenizer: str | None = None) -> Opened:
    """The network of a run, an imported model or a Hugging Face folder, on a GPU where there is one.

    The tokenizer is the named one, else a tokenizer.json in the folder, else what the run was trained with; a source's or
    token shards' tokens are numbers. Raises UserError for a folder without a model, and a tokenizer that doesn't fit it.
    """
    trained_with = None
    if (folder / "config.yaml").is_file():
        config, denoiser = open_run(folder)
        if kinds(config.data.corpus) <= {*TEXTS, *PAIRS}:
            trained_with = config.data.tokenizer
    elif (folder / "config.json").is_file():
        denoiser = load_hf(folder)
    else:
        raise UserError(
            f"{folder} has neither config.yaml nor config.json: name the folder of a finished run, an imported or a Hugging "
            "Face model"
        )
    own = str(folder / "tokenizer.json") if (folder / "tokenizer.json").is_file() else trained_with
    name = tokenizer or own
    found = None if name is None else load_tokenizer(name)
    if found is not None:
        _check_fit(denoiser.config, found, name or "")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return Opened(denoiser.to(device).eval(), found)


def _check_fit(model: ModelConfig, tokenizer: Tokenizer, name: str) -> None:
    vocabulary = tokenizer.vocabulary
    if vocabulary.size > model.vocab_size:
        raise UserError(
            f"tokenizer {name} has {vocabulary.size} ids, and model.vocab_size={model.vocab_size}: name the model's own with "
            "--tokenizer"
        )
    if name == "bytes" and model.vocab_size > 2 * vocabulary.size:
        raise UserError(
            f"model.vocab_size={model.vocab_size} is of no model of bytes: name its tokenizer.json with --tokenizer"
        )


def given(arguments: argparse.Namespace, names: Sequence[str]) -> dict[str, object]:
    """Those of the options that were given."""
    return {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
