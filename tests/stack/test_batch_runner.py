"""Batches beside a stand-in for the model: crashes between two steps, engines that die, disks that are full, time that runs out."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from herd.base.errors import ConfigError, NotFoundError
from herd.stack.batch_lines import LineWriter
from herd.stack.batch_runner import MAX_TRIES, BatchRunner
from herd.stack.config import ServerConfig
from herd.stack.engine_process import EngineDownError
from herd.stack.errors import RequestError
from herd.stack.keys import ApiKey, digest_of
from herd.stack.service import Service
from herd.stack.storage import BatchRow, FileRow, Storage

Answer = Callable[[dict[str, Any]], Any]


@pytest.fixture
def storage(tmp_path: Path) -> Iterator[Storage]:
    made = Storage(tmp_path / "state")
    yield made
    made.close()


def runner_of(storage: Storage, answer: Answer, *, keys: tuple[ApiKey, ...] = ()) -> BatchRunner:
    """A runner whose lines are answered by a function of their bodies."""
    engine = SimpleNamespace(state="ready", info={"max_sequences": 8})
    service: Any = Service.__new__(Service)
    service.config, service.engine = ServerConfig(model_name="none", keys=keys), engine
    runner = BatchRunner(service, storage)

    async def told(endpoint: str, body: dict[str, Any], context: object, priority: int) -> dict[str, Any]:
        found = answer(body)
        return await found if asyncio.iscoroutine(found) else found

    runner._answerer = SimpleNamespace(answer=told)  # type: ignore[assignment]
    return runner


def keep_batch(storage: Storage, num_lines: int, *, window_s: float = 3600.0, owner: str = "", **fields: Any) -> BatchRow:
    lines = [
        {"custom_id": f"line-{number}", "method": "POST", "url": "/v1/completions", "body": {"number": number}}
        for number in range(num_lines)
    ]
    data = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
    storage.file_path("file-in").write_bytes(data)
    storage.add(FileRow(id="file-in", owner=owner, filename="in", purpose="batch", size_bytes=len(data), created=time.time()))
    now = time.time()
    row = BatchRow(
        id="batch_1",
        owner=owner,
        state="validating",
        endpoint="/v1/completions",
        input_file_id="file-in",
        window="1h",
        created=now,
        expires=now + window_s,
        outcome="completed",
        total=0,
        completed=0,
        failed=0,
    )
    for name, value in fields.items():
        setattr(row, name, value)
    storage.add(row)
    return row


def run(runner: BatchRunner, storage: Storage, *, owner: str = "") -> BatchRow:
    """Go on with what is open, to its end."""

    async def go() -> None:
        await runner.start()
        while runner._tasks:
            await asyncio.sleep(0.01)

    asyncio.run(go())
    return storage.batches.get(owner, "batch_1")


def written(storage: Storage, file_id: str | None) -> dict[str, Any]:
    assert file_id is not None
    rows = [json.loads(line) for line in storage.file_path(file_id).read_text().splitlines()]
    assert len({row["custom_id"] for row in rows}) == len(rows)
    return {row["custom_id"]: row for row in rows}


def test_what_was_not_answered_in_time_is_told_as_expired(storage: Storage) -> None:
    keep_batch(storage, 6, window_s=0.3)

    async def answer(body: dict[str, Any]) -> dict[str, Any]:
        await asyncio.sleep(0 if body["number"] < 2 else 60)
        return body

    batch = run(runner_of(storage, answer), storage)
    assert (batch.state, batch.total, batch.completed, batch.failed) == ("expired", 6, 2, 4)
    assert {row["error"]["code"] for row in written(storage, batch.error_file_id).values()} == {"batch_expired"}
    assert set(written(storage, batch.output_file_id)) == {"line-0", "line-1"}


def test_a_busy_server_is_asked_again_and_a_line_that_kills_the_engine_is_given_up(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep_batch(storage, 2)
    asked = {0: 0, 1: 0}
    sleep = asyncio.sleep
    monkeypatch.setattr(asyncio, "sleep", lambda seconds: sleep(min(seconds, 0.001)))

    def answer(body: dict[str, Any]) -> dict[str, Any]:
        asked[body["number"]] += 1
        if body["number"] == 0:
            raise EngineDownError("the engine's process was ended by SIGSEGV")
        if asked[1] <= 20:
            raise RequestError("busy", "later", retry_after_s=1.0)
        return body

    batch = run(runner_of(storage, answer), storage)
    assert (batch.state, batch.completed, batch.failed) == ("completed", 1, 1)
    assert asked == {0: MAX_TRIES, 1: 21}
    assert written(storage, batch.error_file_id)["line-0"]["response"]["status_code"] == 503


def test_an_error_of_the_server_is_told_without_what_is_inside(storage: Storage) -> None:
    keep_batch(storage, 1)

    def answer(body: dict[str, Any]) -> dict[str, Any]:
        raise ZeroDivisionError("secret")

    row = written(storage, run(runner_of(storage, answer), storage).error_file_id)["line-0"]
    assert row["response"]["status_code"] == 500 and "secret" not in json.dumps(row)
    assert row["response"]["request_id"] in row["response"]["body"]["error"]["message"]


@pytest.mark.parametrize("broken", ["lines", "renamed"])
def test_a_crash_while_a_batch_is_ended_loses_nothing(storage: Storage, broken: str) -> None:
    keep_batch(storage, 2, state="finalizing", outcome="completed", total=2, output_file_id="file-out")
    target = storage.file_path("file-out") if broken == "renamed" else storage.lines_path("batch_1", "output")
    target.write_text('{"custom_id": "line-0"}\n{"custom_id": "line-1"}\n')
    batch = run(runner_of(storage, lambda body: body), storage)
    assert (batch.state, batch.completed, batch.failed) == ("completed", 2, 0)
    assert set(written(storage, batch.output_file_id)) == {"line-0", "line-1"}
    assert storage.files.get("", "file-out").size_bytes == storage.file_path("file-out").stat().st_size
    assert not storage.lines_path("batch_1", "output").exists()


def test_a_crash_before_a_cancelled_batch_was_ended_ends_it_at_the_next_start(storage: Storage) -> None:
    keep_batch(storage, 2, state="cancelling", total=2)
    storage.lines_path("batch_1", "output").write_text('{"custom_id": "line-0"}\n{"custom_')
    batch = run(runner_of(storage, lambda body: body), storage)
    assert (batch.state, batch.completed) == ("cancelled", 1)
    assert set(written(storage, batch.output_file_id)) == {"line-0"}


def test_the_batches_of_a_key_that_is_gone_are_refused_line_by_line(storage: Storage) -> None:
    keep_batch(storage, 2, owner="ann")
    bob = ApiKey(name="bob", digest=digest_of("bob-key-0123456789"))
    batch = run(runner_of(storage, lambda body: body, keys=(bob,)), storage, owner="ann")
    assert (batch.completed, batch.failed) == (0, 2)
    with pytest.raises(NotFoundError, match="there is no batch"):
        storage.batches.get("bob", "batch_1")


def test_a_full_disk_ends_a_batch_with_the_lines_that_it_has(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    keep_batch(storage, 8)
    num_left = 3
    write = LineWriter.write

    def full(self: LineWriter, value: dict[str, Any]) -> None:
        nonlocal num_left
        num_left -= 1
        if num_left < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(self, value)

    monkeypatch.setattr(LineWriter, "write", full)
    batch = run(runner_of(storage, lambda body: body), storage)
    assert (batch.state, batch.completed) == ("failed", 3)
    assert batch.problems is not None and batch.problems[0]["code"] == "server_error"
    assert len(written(storage, batch.output_file_id)) == 3


def test_a_line_that_could_not_be_written_whole_leaves_the_file_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = LineWriter(tmp_path / "lines")
    writer.write({"custom_id": "a"})
    write = os.write

    def half(descriptor: int, data: bytes) -> int:
        if len(data) > 4:
            return write(descriptor, data[:4])
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", half)
        with pytest.raises(OSError, match="No space"):
            writer.write({"custom_id": "bcdefg"})
    writer.write({"custom_id": "c"})
    writer.close()
    again = LineWriter(tmp_path / "lines")
    assert again.ids == ["a", "c"]
    again.close()


def test_the_state_of_a_newer_herd_and_a_folder_that_cannot_be_are_refused(tmp_path: Path) -> None:
    import sqlite3

    (tmp_path / "new").mkdir()
    with sqlite3.connect(tmp_path / "new" / "server.db") as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(ConfigError, match="newer herd"):
        Storage(tmp_path / "new")
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot keep files"):
        Storage(tmp_path / "file" / "state")


def test_uploads_that_a_crash_cut_short_are_removed_at_the_next_start(tmp_path: Path) -> None:
    first = Storage(tmp_path)
    keep_batch(first, 1, state="finalizing", outcome="completed", output_file_id="file-out")
    for name in ("file-lost", "file-new.part", "file-out"):
        (tmp_path / "files" / name).write_text("x")
    first.close()
    second = Storage(tmp_path)
    assert sorted(path.name for path in (tmp_path / "files").iterdir()) == ["file-in", "file-out"]
    second.close()
