"""`ablate data`: fetch text, and turn text into token shards."""

import argparse
import shlex
from pathlib import Path

from ablations.cli.terminal import console
from core.data.corpus import text_kinds
from core.data.fetch import get_shakespeare
from core.data.shards import write_shards
from core.data.splits import check_share, sentence
from core.data.tokenizers import FileTokenizer, train_bpe
from core.errors import UserError

FETCHED = {"shakespeare": get_shakespeare}


def run_data(arguments: argparse.Namespace) -> int:
    """Fetch a text by name, or tokenise a corpus."""
    return _get(arguments.name) if arguments.verb == "get" else _tokenise(arguments)


def _get(name: str) -> int:
    if name not in FETCHED:
        raise UserError(f"nothing is known to fetch under '{name}'; known: {', '.join(FETCHED)}")
    folder = FETCHED[name]()
    texts = sorted(folder.glob("*.txt"))
    size = sum(path.stat().st_size for path in texts)
    console().unwrapped(f"{len(texts)} texts, {size:,} bytes: {folder}")
    console().print(f"use it: data.corpus={name}")
    return 0


def _tokenise(arguments: argparse.Namespace) -> int:
    kind, _, argument = arguments.name.partition(":")
    texts = text_kinds()
    if kind not in texts:
        raise UserError(f"'{arguments.name}' is no text: use one of {', '.join(texts)}")
    folder: Path = arguments.to or arguments.out / "tokens" / f"{kind}-{arguments.vocab_size}"
    if (folder / "train.bin").exists():
        raise UserError(f"{folder} holds shards already: name another folder with --to")
    documents = texts[kind](argument, arguments.held_out_share)
    bpe = train_bpe(list(documents.train.values()), arguments.vocab_size)  # held-out text teaches nothing
    folder.mkdir(parents=True, exist_ok=True)
    bpe.save(str(folder / "tokenizer.json"))
    tokenizer = FileTokenizer(folder / "tokenizer.json")
    train_T, validation_T = tokenizer.join(documents.train), tokenizer.join(documents.validation)
    ids, bytes_per_token = tokenizer.vocabulary, sum(map(len, documents.validation.values())) / len(validation_T)
    sizes = (arguments.name, len(train_T), len(validation_T), documents.origin)
    check_share(*sizes, arguments.held_out_share)
    write_shards(folder, train_T, validation_T, ids, bytes_per_token)
    out = console()
    out.unwrapped(f"{sentence(*sizes)}; {bytes_per_token:.2f} bytes a token")
    settings = (
        f"data.corpus={shlex.quote(f'tokens:{folder}')} model.vocab_size={ids.size} model.mask_id={ids.mask} "
        f"model.eos_id={ids.eos} model.pad_id={ids.pad}"
    )
    if arguments.held_out_share is not None:
        settings += f" data.held_out_share={arguments.held_out_share:g}"
    out.unwrapped(f"use it: {settings}")
    return 0
