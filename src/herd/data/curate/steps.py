"""What the steps of a plan do: a pass over a shard's records, a part of a search, a search's result. Pure functions of their inputs.

A pass writes `records.jsonl.zst` and, for every search after it, a folder of signatures; its report holds the tallies of its stages.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import zstandard

from herd.base.errors import FormatError
from herd.data.classifier import load_classifier
from herd.data.curate.config import stage_from_dict
from herd.data.dedup.corpus_stage import Judge, Signatures, Signer
from herd.data.executor.plan import Task
from herd.data.executor.shard_run import read_done
from herd.data.records import Record, read_raw, read_records
from herd.data.stages.dirty_words import dirty_list
from herd.data.stages.overlap import overlap_index
from herd.data.stages.stage import Drop, Note, Tally, size_of
from herd.data.stages.url import url_lists
from herd.data.stages.word_list import read_list

RECORDS = "records.jsonl.zst"
_LEVEL = 3
_read_files: dict[str, Any] = {}
"""In this process: the state in which files beside the records were read."""


class Census:
    """Documents and bytes by language, route and source file, and a histogram of lengths by powers of two."""

    def __init__(self) -> None:
        self.tables: dict[str, dict[str, list[int]]] = {"languages": {}, "routes": {}, "sources": {}, "lengths": {}}

    def count(self, record: Record, source: str) -> None:
        """One more record."""
        size = size_of(record)
        keys = (str(record.get("lang") or "?"), str(record.get("route") or "prose"), source, f"{max(0, size - 1).bit_length():02d}")
        for table, key in zip(self.tables.values(), keys, strict=True):
            counts = table.setdefault(key, [0, 0])
            counts[0] += 1
            counts[1] += size


def run_pass(task: Task) -> Mapping[str, Any]:
    """One pass: apply what searches found, run the stages, write what is left and sign it for the searches to come."""
    config = task.config
    _refresh(config["depends_on"])
    applies = [(stage_from_dict(item["stage"]), task.input(item["result"])) for item in config["applies"]]
    stages = [stage_from_dict(table) for table in config["stages"]]
    signs = [stage_from_dict(table) for table in config["signs"]]
    judges: list[Judge] = [stage.judge(result, task.number) for stage, result in applies]
    signers: list[Signer] = [stage.signer() for stage in signs]
    tallies = [Tally("read"), *(Tally(stage.kind) for stage, _ in applies), *(Tally(stage.kind) for stage in stages)]
    before, after = Census(), Census()
    num_records = 0
    with (task.output / RECORDS).open("wb") as raw, zstandard.ZstdCompressor(level=_LEVEL).stream_writer(raw) as out:
        for place, record, source in _input(task, tallies[0]):
            before.count(record, source)
            kept = _judged(record, place, applies, judges, stages, tallies[1:])
            if kept is None:
                continue
            num_records += 1
            after.count(kept, source)
            _write(out, kept)
            for stage, signer in zip(signs, signers, strict=True):
                signer.add(kept if _looked_at(stage, kept) else None)
    for order, signer in enumerate(signers):
        folder = task.output / f"signatures-{order}"
        folder.mkdir()
        signer.save(folder)
    first = {} if config["previous"] else {"before": before.tables}
    return {"records": num_records, "stages": [tally.to_dict() for tally in tallies], **first, "after": after.tables}


def _refresh(depends_on: Mapping[str, Any]) -> None:
    """Forget lists, indexes and classifiers that were read in this process from files which have changed since."""
    if any(_read_files.setdefault(file, identity) != identity for file, identity in depends_on.items()):
        _read_files.clear()
        _read_files.update(depends_on)
        for cached in (read_list, url_lists, dirty_list, load_classifier, overlap_index):
            cached.cache_clear()


def _looked_at(stage: Any, record: Record) -> bool:
    return not stage.routes or record.get("route", "prose") in stage.routes


def _judged(record: Record, place: int, applies: list[Any], judges: list[Judge], stages: list[Any], tallies: list[Tally]) -> Record | None:
    """A record after all stages of a pass, or None."""
    current: Record | None = record
    for number, ((stage, _), judge) in enumerate(zip(applies, judges, strict=True)):
        if _looked_at(stage, current):

            def apply(record: Record, note: Note, judge: Judge = judge) -> Record | Drop:
                return judge(place, record, note)

            current = tallies[number].run(current, apply)
            if current is None:
                return None
    for number, stage in enumerate(stages, start=len(applies)):
        if _looked_at(stage, current):
            current = tallies[number].run(current, stage.apply)
            if current is None:
                return None
    return current


def _input(task: Task, tally: Tally) -> Iterator[tuple[int, Record, str]]:
    """The records of a shard with their places and the file they came from first; `tally` counts what cannot be used."""
    if task.config["previous"]:
        (step,) = task.config["previous"]
        for place, record in enumerate(read_raw(task.input(step) / RECORDS)):
            yield place, record, str(record.get("from") or "?").rsplit(":", 1)[0]
        return
    field = task.config["text_field"]
    place = 0
    for file in task.files:
        name = file.rsplit("/", 1)[-1]
        for number, record in enumerate(_records(file, tally, task.config)):
            if field != "text" and field in record:
                record = {**{key: value for key, value in record.items() if key != field}, "text": record[field]}
            kept = tally.run({**record, "from": f"{name}:{number}"}, _usable)
            if kept is not None:
                yield place, kept, name
                place += 1


def _records(file: str, tally: Tally, config: Mapping[str, Any]) -> Iterator[Record]:
    try:
        yield from read_records(file) if config["extract"] else read_raw(file)
    except FormatError as error:
        if config["on_damage"] != "skip":
            raise
        message = error.message
        tally.run({"id": file}, lambda record, note: Drop("damaged file, left from there on", message))


def _usable(record: Record, note: Note) -> Record | Drop:
    if isinstance(record.get("text"), str):
        return record
    if isinstance(record.get("html"), str):
        return {name: value for name, value in record.items() if name != "text"}
    return Drop("no text", f"fields: {', '.join(sorted(record))}")


def _write(out: Any, record: Record) -> None:
    out.write(json.dumps(record, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace") + b"\n")


def search_part(task: Task) -> Mapping[str, Any]:
    """One part of a search over the signatures of all shards."""
    stage = stage_from_dict(task.config["stage"])
    return stage.find(_signatures(task), task.number, task.output)


def search_merge(task: Task) -> Mapping[str, Any]:
    """A search's result of its parts."""
    stage = stage_from_dict(task.config["stage"])
    return stage.merge(_signatures(task), task.inputs[task.config["parts"]], task.output)


def _signatures(task: Task) -> Signatures:
    passes = task.inputs[task.config["pass"]]
    return Signatures(
        folders=tuple(folder / f"signatures-{task.config['order']}" for folder in passes),
        counts=tuple(_num_records(folder) for folder in passes),
        before=tuple(task.input(step) for step in task.config["before"]),
    )


def _num_records(folder: Path) -> int:
    done = read_done(folder)
    assert done is not None, "a search runs after the passes that it reads"
    return int(done["report"]["records"])
