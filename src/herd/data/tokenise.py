"""From records to token shards, a shard for every group of files, by whatever executor.

Text goes between begin and end of text, a dialogue into the 3.1 format, of which only the answers count if that is asked for.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from herd.base.atomic import atomic_directory
from herd.base.config_io import from_dict, to_dict
from herd.base.errors import ConfigError, FormatError
from herd.data.executor.local import run_local
from herd.data.executor.plan import Plan, Shard, Step, Task, write_plan
from herd.data.executor.shard_run import reports
from herd.data.records import Record, read_records, to_messages
from herd.data.sources import expand
from herd.data.token_shards import ShardInfo, ShardWriter, write_index
from herd.text.messages import Message
from herd.text.prompt import PromptFormat
from herd.text.tokenizer import Tokenizer, load_tokenizer

STEP = "tokens"


@dataclass(frozen=True, kw_only=True, slots=True)
class TokeniseConfig:
    """What becomes tokens. `tokenizer` is a folder or file; `kind` chat reads dialogues, `answers_only` lets only answers count."""

    tokenizer: str
    kind: Literal["text", "chat"] = "text"
    answers_only: bool = False
    languages: tuple[str, ...] = ()
    files_per_shard: int = 1

    def __post_init__(self) -> None:
        if self.answers_only and self.kind != "chat":
            raise ConfigError("answers_only goes with dialogues", hint="set kind to chat")
        if self.files_per_shard < 1:
            raise ConfigError(f"files_per_shard is {self.files_per_shard}", hint="at least 1")


@lru_cache(maxsize=2)
def _tokenizer(path: str) -> Tokenizer:
    return load_tokenizer(Path(path))


def tokenizer_digest(path: str) -> str:
    """What tells one tokenizer from another: a digest of all of its tokens."""
    tokenizer = _tokenizer(path)
    digest = hashlib.blake2b(digest_size=16)
    for token_id in range(tokenizer.vocab_size):
        token = tokenizer.token_bytes(token_id)
        digest.update(len(token).to_bytes(4, "little") + token)
    return digest.hexdigest()


def encode(record: Record, config: TokeniseConfig, tokenizer: Tokenizer) -> tuple[Sequence[int], Sequence[bool] | None]:
    """Token ids of a record, and which of them count. Raises FormatError for a record of another kind."""
    if config.kind == "text":
        text = record.get("text")
        if not isinstance(text, str):
            raise FormatError(f"a record with the fields {sorted(record)} has no text", hint="pass --chat for dialogues")
        return tokenizer.encode(text, bos=True, eos=True), None
    makers = {"system": Message.system, "user": Message.user, "assistant": Message.assistant}
    turns = to_messages(record)
    unknown = next((turn["role"] for turn in turns if turn["role"] not in makers), None)
    if unknown is not None:
        raise FormatError(f"a dialogue holds a turn of role {unknown!r}", hint="roles are system, user and assistant")
    ids, answer = PromptFormat().encode_with_mask(tokenizer, [makers[turn["role"]](turn["content"]) for turn in turns])
    return ids, answer if config.answers_only else None


def tokenise_shard(task: Task) -> Mapping[str, Any]:
    """One shard of tokens from its files."""
    values = dict(task.config)
    values.pop("tokenizer_digest")
    config = from_dict(TokeniseConfig, values, where="tokenise")
    tokenizer = _tokenizer(config.tokenizer)
    with ShardWriter(task.output, task.name, vocab_size=tokenizer.vocab_size, has_counts=config.answers_only) as writer:
        for file in task.files:
            for record in read_records(file):
                if not config.languages or record.get("lang") in config.languages:
                    writer.add(*encode(record, config, tokenizer))
        return asdict(writer.close())


def tokenise_plan(sources: Sequence[str | Path], config: TokeniseConfig) -> Plan:
    """The plan of one step. Raises NotFoundError for sources that are not there."""
    files = expand(sources)
    groups = [tuple(files[start : start + config.files_per_shard]) for start in range(0, len(files), config.files_per_shard)]
    shards = tuple(Shard(name=f"{number:05d}", files=group) for number, group in enumerate(groups))
    values = {**to_dict(config), "tokenizer_digest": tokenizer_digest(config.tokenizer)}
    return Plan(steps=(Step(name=STEP, function="herd.data.tokenise:tokenise_shard", config=values, shards=shards),))


def tokenise(sources: Sequence[str | Path], folder: Path, config: TokeniseConfig, *, workers: int = 1) -> dict[str, Any]:
    """Tokenise into `folder`; the parts of the work are kept in its `.work`, so that a killed run goes on. Returns figures."""
    plan = tokenise_plan(sources, config)
    work = folder.parent / f".{folder.name}.work"
    work.mkdir(parents=True, exist_ok=True)
    write_plan(plan, work)
    run_local(plan, work, workers=workers)
    shards = [from_dict(ShardInfo, report, where="shard") for report in reports(plan, STEP, work)]
    tokenizer = _tokenizer(config.tokenizer)
    with atomic_directory(folder, overwrite=True) as temporary:
        for shard in shards:
            for path in sorted((work / STEP / shard.name).glob(f"{shard.name}.*")):
                os.link(path, temporary / path.name)
        write_index(
            temporary,
            shards,
            vocab_size=tokenizer.vocab_size,
            pad_id=tokenizer.pad_id,
            tokenizer=plan.steps[0].config["tokenizer_digest"],
            has_counts=config.answers_only,
        )
    shutil.rmtree(work)
    totals = {"tokens": sum(shard.num_tokens for shard in shards), "documents": sum(shard.num_documents for shard in shards)}
    return {"folder": str(folder), "shards": len(shards), **totals, "tokenizer": plan.steps[0].config["tokenizer_digest"]}
