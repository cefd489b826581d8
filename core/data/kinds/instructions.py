"""Corpora of instructions: conversations from a file of JSON lines."""

from dataclasses import replace

from core.data.chat import turns
from core.data.corpus import Corpus, Reading, corpus
from core.data.documents import read_jsonl, text_of
from core.data.files import locate_file
from core.data.responses import Conversation, held_out_rows, of_turns
from core.data.specials import check_read, special_tokens
from core.data.splits import Origin
from core.data.tokenizers import load_tokenizer, unread_tokens
from core.errors import UserError


@corpus("instructions", responses=True, templated=True)
def _instructions(argument: str, reading: Reading) -> Corpus:
    """instructions:FILE.jsonl with "prompt" and "response", or "messages" that data.chat_template writes.

    Only responses may be masked. One conversation a sequence, filled up with eos, or as many as fit (data.packing). Raises
    UserError for one that doesn't fit: cutting it would teach half an answer.
    """
    path = locate_file("instructions", argument)
    tokenizer, specials = load_tokenizer(reading.tokenizer), special_tokens(reading.tokenizer)
    found, unread = list[Conversation](), unread_tokens(tokenizer, specials)
    for number, row in read_jsonl(path):
        where = f"{path}:{number}"
        if "messages" in row:
            if both := {"prompt", "response"} & set(row):
                raise UserError(f'{where} has "messages" and "{min(both)}": keep one of them')
            said = turns(where, row["messages"], reading.chat_template, specials, tokenizer.shield)
            check_read(where, said, unread, reading.tokenizer)
            found.append(Conversation(where, said, written=True))
            continue
        prompt, response = (
            text_of(row, key, path, number, ' ("messages" would do too)') for key in ("prompt", "response")
        )
        found.append(Conversation(where, [(prompt, False), (response, True)]))
    held = held_out_rows(len(found), reading.held_out_share)
    corpus = of_turns("instructions", found, held, tokenizer, reading) if found else None
    if corpus is None or len(found) < 20:
        raise UserError(f"{path} has {len(found)} pairs: at least 20 are needed, two of them to hold out")
    return replace(corpus, origin=Origin([path.name], [f"the last {held:,} of {len(found):,} conversations"]))
