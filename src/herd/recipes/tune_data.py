"""The data of a post-training run: records to packed rows as named columns, some kept back to measure the run. Cached in the run's folder.

A cache file is named by a digest of what made it: the source with the content of its files, the tokenizer, the length, the method. A record
is kept back by a digest of its own, so a run on more data keeps back the same ones.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from herd.base.atomic import atomic_file
from herd.base.config_io import to_toml
from herd.base.errors import FormatError, NotFoundError
from herd.base.log import get_logger
from herd.data.answers import Judged, pack_answers
from herd.data.records import Record, read_records
from herd.data.rows import Document, pack
from herd.recipes.dialogue import read_dialogue
from herd.recipes.judged import Choice, encode_choice, read_choice, read_labelled, with_mismatched
from herd.recipes.sources import is_heldout, read_source, record_text
from herd.recipes.tune_config import TuneConfig
from herd.text.prompt import PromptFormat
from herd.text.tokenizer import Tokenizer
from herd.train.config import SourceConfig

log = get_logger(__name__)

Table = dict[str, NDArray[Any]]
_ENDINGS = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".txt", ".txt.gz", ".txt.zst", ".md")


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepared:
    """The rows of a source: those to train on and those kept back; how many records were read, and left out since they do not fit."""

    train: Table
    heldback: Table
    num_records: int
    num_dropped: int


def tokenizer_digest(tokenizer: Tokenizer) -> str:
    """A digest of a vocabulary: equal ids, equal digest."""
    digest = hashlib.sha256(json.dumps(tokenizer.special_tokens, sort_keys=True).encode())
    for token, rank in sorted(tokenizer.ranks.items(), key=lambda item: item[1]):
        digest.update(rank.to_bytes(4, "little") + token + b"\n")
    return digest.hexdigest()


def _files(source: SourceConfig, data: Path | None) -> list[Path] | None:
    """The files of a source below the data path, which may itself be the file; None for what ships with herd."""
    if source.path.startswith(("own:", "package:")):
        return None
    if data is None:
        raise NotFoundError(f"source {source.name!r} reads {source.path!r} from --data, which was not given", hint="pass --data FILE.jsonl")
    place = data / source.path
    if not place.is_dir():
        return [place]
    found = sorted(path for path in place.iterdir() if path.name.endswith(_ENDINGS))
    if not found:
        raise NotFoundError(f"{place} holds no records", hint="files are .jsonl or .txt, also .gz and .zst")
    return found


def _records(source: SourceConfig, data: Path | None, seed: int) -> Iterator[tuple[str, Record]]:
    """The records of a source, after its filters, each with where it stands."""
    files = _files(source, data)
    if files is None:
        for number, record in enumerate(read_source(source, data, seed=seed), start=1):
            yield f"{source.path}, record {number}", record
        return
    num_items = num_bytes = 0
    for path in files:
        for number, record in enumerate(read_records(path), start=1):
            if source.languages and record.get("lang") not in source.languages:
                continue
            num_items += 1
            num_bytes += len(json.dumps(record, ensure_ascii=False).encode())
            if (source.num_items and num_items > source.num_items) or (source.max_bytes and num_bytes > source.max_bytes):
                return
            yield f"{path}, record {number}", record


def _content_digest(source: SourceConfig, data: Path | None) -> str:
    digest = hashlib.sha256()
    for path in _files(source, data) or ():
        try:
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        except OSError as error:
            raise NotFoundError(f"cannot read {path}: {error.strerror}", hint="check the path given with --data") from error
    return digest.hexdigest()


def data_digest(source: SourceConfig, config: TuneConfig, data: Path | None, tokenizer: str) -> str:
    """What the rows of a source depend on."""
    key = (
        *(to_toml(source), _content_digest(source, data), tokenizer, str(config.train.sequence_length), str(config.train.answers_only)),
        *(config.method, str(config.is_kto), str(config.seed), str(config.heldback_one_in), "|".join(config.strengths), config.today),
    )
    return hashlib.sha256("\n".join(key).encode()).hexdigest()


def prepare_source(
    source: SourceConfig, config: TuneConfig, data: Path | None, tokenizer: Tokenizer, *, context: int, digest: str, cache: Path
) -> Prepared:
    """The packed rows of a source. Raises FormatError naming a record that cannot be read."""
    path = cache / f"{source.name}-{digest[:16]}.npz"
    if not path.exists():
        kept: dict[bool, list[Record]] = {False: [], True: []}
        for where, record in _records(source, data, config.seed):
            if config.strengths and "strength" in record and record["strength"] not in config.strengths:
                continue
            kept[_is_heldback(record, config)].append({**record, "_where": where})
        chat = PromptFormat(today=config.today)
        parts = [_pack(kept[back], source, config, tokenizer, chat, context) for back in (False, True)]
        if not len(parts[0][0]["tokens"]):
            raise FormatError(
                f"source {source.name!r} gives no rows: {len(kept[False])} records, {parts[0][1]} of them too long",
                hint="raise train.sequence_length, or look at the file",
            )
        _write(path, parts, sum(map(len, kept.values())))
    return _read(path)


def _is_heldback(record: Record, config: TuneConfig) -> bool:
    return config.heldback_one_in > 0 and is_heldout(json.dumps(record, sort_keys=True, ensure_ascii=False), config.heldback_one_in)


def _pack(
    records: list[Record], source: SourceConfig, config: TuneConfig, tokenizer: Tokenizer, chat: PromptFormat, context: int
) -> tuple[Table, int]:
    """Rows of some records, and how many did not fit."""
    length = config.train.sequence_length
    if config.method in ("reward", "preference"):
        judged = list(_judged(records, config, tokenizer, chat))
        fitting = [item for item in judged if max(len(answer.ids) for answer in item.answers) + len(item.prompt) <= context]
        rows = pack_answers(fitting, length, pad_id=tokenizer.pad_id)
        table, num_dropped = rows.columns, len(judged) - len(fitting) + rows.num_dropped
    else:
        documents = (_document(record, source, config, tokenizer, chat) for record in records)
        packed = pack(documents, length, pad_id=tokenizer.pad_id, split=source.kind == "text")
        table = {"tokens": packed.tokens, "documents": packed.documents, "counts": packed.counts}
        num_dropped = packed.num_dropped
    if num_dropped:
        log.warning("%s: %d of %d are over %d tokens and were left out", source.name, num_dropped, len(records), length + 1)
    return table, num_dropped


def _located(error: FormatError, record: Record) -> FormatError:
    return FormatError(f"{record['_where']}: {error.message}", hint=error.hint)


def _document(record: Record, source: SourceConfig, config: TuneConfig, tokenizer: Tokenizer, chat: PromptFormat) -> Document:
    try:
        if source.kind == "text":
            return Document(ids=tokenizer.encode(record_text(record), bos=True, eos=True))
        found = read_dialogue(record)
        if not any(message.role == "assistant" for message in found.messages):
            raise FormatError("a dialogue without an assistant's turn teaches nothing", hint="its last turn is the answer to learn")
        ids, written = chat.encode_with_mask(tokenizer, found.messages, tools=found.tools, builtin_tools=found.builtin_tools)
    except FormatError as error:
        raise _located(error, record) from error
    return Document(ids=ids, counts=written if config.train.answers_only else None)


def _judged(records: list[Record], config: TuneConfig, tokenizer: Tokenizer, chat: PromptFormat) -> Iterator[Judged]:
    choices: list[tuple[Choice, Record]] = []
    for record in records:
        try:
            found = list(read_labelled(record)) if config.is_kto else [read_choice(record)]
        except FormatError as error:
            raise _located(error, record) from error
        choices.extend((choice, record) for choice in found)
    if config.is_kto:
        mismatched = with_mismatched(choice for choice, _ in choices)
        choices = [(choice, record) for choice, (_, record) in zip(mismatched, choices, strict=True)]
    for choice, record in choices:
        try:
            yield encode_choice(choice, tokenizer, chat)
        except FormatError as error:
            raise _located(error, record) from error


def _write(path: Path, parts: list[tuple[Table, int]], num_records: int) -> None:
    arrays = {
        f"{part}/{name}": column for part, (table, _) in zip(("train", "heldback"), parts, strict=True) for name, column in table.items()
    }
    numbers = np.array([num_records, parts[0][1] + parts[1][1]])
    with atomic_file(path) as temporary, temporary.open("wb") as file:
        np.savez(file, numbers=numbers, **arrays)  # pyright: ignore[reportArgumentType]


def _read(path: Path) -> Prepared:
    with np.load(path, allow_pickle=False) as arrays:
        tables = {
            part: {name.removeprefix(part + "/"): arrays[name] for name in arrays.files if name.startswith(part + "/")}
            for part in ("train", "heldback")
        }
        numbers = arrays["numbers"].tolist()
    return Prepared(train=tables["train"], heldback=tables["heldback"], num_records=numbers[0], num_dropped=numbers[1])


def joined(tables: list[Table]) -> Table:
    """The rows of several sources as one table."""
    return {name: np.concatenate([table[name] for table in tables]) for name in tables[0]}


def with_column(prepared: Prepared, name: str, train: NDArray[Any], heldback: NDArray[Any]) -> Prepared:
    """One more column."""
    return replace(prepared, train={**prepared.train, name: train}, heldback={**prepared.heldback, name: heldback})
