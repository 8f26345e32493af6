"""From a source's config to documents: which records it reads, which of them are held out, and how each becomes token ids.

A record is held out by a digest of its own text, so the split is the same in every run, stage and language filter.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from importlib.resources import as_file, files
from pathlib import Path

from herd.base.errors import NotFoundError
from herd.data.records import Record, read_records
from herd.data.rows import Document
from herd.recipes.chat_data import drills, own_dialogues
from herd.recipes.copy_drills import copies
from herd.recipes.dialogue import read_dialogue
from herd.recipes.guard_records import guard_records
from herd.recipes.needle_text import needle_records
from herd.recipes.tool_drills import tool_drills
from herd.text.prompt import PromptFormat
from herd.text.tokenizer import Tokenizer
from herd.train.config import SourceConfig


def _file_records(path: str, data: Path | None) -> Iterator[Record]:
    if path.startswith("package:"):
        with as_file(files("herd.recipes") / "data" / path.removeprefix("package:")) as file:
            yield from read_records(file)
        return
    if data is None:
        raise NotFoundError(f"this recipe reads {path} from a data folder, and none was given", hint="pass --data FOLDER")
    yield from read_records(data / path)


def read_source(source: SourceConfig, data: Path | None, *, seed: int) -> Iterator[Record]:
    """The records of a source, after its language filter and up to its `max_bytes` of text or `num_items`."""
    if source.path == "own:dialogues":
        records: Iterator[Record] = own_dialogues()
    elif source.path == "own:drills":
        records = drills(seed, source.num_items or 10_000)
    elif source.path == "own:copies":
        records = copies(seed, source.num_items or 10_000)
    elif source.path == "own:tool-drills":
        records = tool_drills(seed, source.num_items or 10_000)
    elif source.path in ("own:guard", "own:guard-short"):
        records = guard_records(seed, source.num_items or 10_000, data, short=source.path == "own:guard-short")
    elif source.path == "own:needles":
        records = needle_records(seed, source.num_items or 1000, num_bytes=source.document_bytes or 8192)
    else:
        records = _file_records(source.path, data)
    num_bytes = num_items = 0
    for record in records:
        if source.languages and record.get("lang") not in source.languages:
            continue
        num_items += 1
        num_bytes += len(record_text(record).encode())
        if (source.max_bytes and num_bytes > source.max_bytes) or (source.num_items and num_items > source.num_items):
            return
        yield record


def record_text(record: Record) -> str:
    """A record's text: its document, or its dialogue's turns a line each."""
    if isinstance(record.get("text"), str):
        return record["text"]
    return "\n".join(message.text for message in read_dialogue(record).messages)


def is_heldout(text: str, one_in: int) -> bool:
    """Whether a document stays out of training: decided by its own digest."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "little") % one_in == 0


def encode_record(record: Record, source: SourceConfig, tokenizer: Tokenizer, chat: PromptFormat, *, answers_only: bool) -> Document:
    """Token ids of one record: a document between begin and end of text, or a dialogue in the 3.1 format."""
    if source.kind == "text":
        return Document(ids=tokenizer.encode(record_text(record), bos=True, eos=True))
    found = read_dialogue(record)
    ids, answer = chat.encode_with_mask(tokenizer, found.messages, tools=found.tools, builtin_tools=found.builtin_tools)
    return Document(ids=ids, counts=answer if answers_only else None)
