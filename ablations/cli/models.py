"""Opened: a trained network by its folder, with the tokenizer that turns its tokens into text and back."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from core.config.model import ModelConfig
from core.config.run import RunConfig
from core.data.corpus import CORPORA
from core.data.documents import encoded
from core.data.mixtures import kinds
from core.data.tokenizers import Tokenizer, load_tokenizer
from core.errors import UserError
from core.interchange.folders import find as find_hf
from core.training.checks import find_run

if TYPE_CHECKING:
    from core.model.transformer import Denoiser  # loads torch

HOLE = "░"  # how a mask is shown, and written in a prompt


@dataclass(frozen=True)
class Opened:
    """A model's folder whose weights can be read; tokenizer None: its tokens are shown as numbers.

    run: the config that it was trained with; None of a Hugging Face folder.
    """

    folder: Path
    config: ModelConfig
    tokenizer: Tokenizer | None
    run: RunConfig | None = None

    @cached_property
    def denoiser(self) -> "Denoiser":
        """The network, in evaluation mode, on a GPU where there is one; read when it is first asked for."""
        import torch  # seconds, which mistakes are refused without

        from core.interchange.huggingface import load  # loads torch
        from core.training.weights import open_run  # loads torch

        network = load(self.folder) if self.run is None else open_run(self.folder)[1]
        return network.to("cuda" if torch.cuda.is_available() else "cpu").eval()

    def encode(self, text: str) -> list[int]:
        """A prompt's tokens: of text, or of numbers where there is no tokenizer; ░ is a mask. Raises UserError."""
        parts = text.split(HOLE)
        if len(parts) > 1 and self.config.mask_id is None:
            raise UserError(f"the prompt has {HOLE}, and the model has no mask token (model.mask_id is none)")
        mask = [] if self.config.mask_id is None else [self.config.mask_id]
        first, *others = [self._encode_part(part) for part in parts]
        return first + [token for part in others for token in (*mask, *part)]

    def _encode_part(self, text: str) -> list[int]:
        if self.tokenizer is not None:
            return self.tokenizer.encode("the prompt", encoded(text, "the prompt")).tolist() if text else []
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
    """The model of a run's, an imported model's or a Hugging Face folder, whose weights aren't read yet.

    The tokenizer is the named one, else a tokenizer.json in the folder, else what the run was trained with; a source's or
    token shards' tokens are numbers. Raises UserError for a folder without a model, and a tokenizer that doesn't fit it.
    """
    run = None
    if (folder / "config.yaml").is_file():
        run = find_run(folder)
    elif not (folder / "config.json").is_file():
        raise UserError(
            f"{folder} has neither config.yaml nor config.json: name the folder of a finished run, an imported or a Hugging "
            "Face model"
        )
    config = find_hf(folder).model if run is None else run.model
    if run is None and config.mask_id is None and not config.causal:
        raise UserError(
            f"{folder / 'config.json'} names no mask token: bring the model in by `ablate import hf {folder} --mask-id N`"
        )
    own = str(folder / "tokenizer.json") if (folder / "tokenizer.json").is_file() else None
    if own is None and run is not None:
        is_text = not any(CORPORA[kind].tokenized or CORPORA[kind].pairs for kind in kinds(run.data.corpus))
        own = run.data.tokenizer if is_text else None
    name = tokenizer or own
    found = None if name is None else load_tokenizer(name)
    if found is not None:
        _check_fit(config, found, name or "")
    return Opened(folder, config, found, run)


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
    """The named options that were given, with their values."""
    return {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
