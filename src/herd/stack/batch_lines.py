"""The files of a batch, line by line: what is asked, in OpenAI's format, and what was answered.

A line of the input is {"custom_id": ..., "method": "POST", "url": "/v1/...", "body": {...}}.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from herd.stack.answers import dumps

MAX_LINES = 50_000
MAX_PROBLEMS = 20
MAX_ID_CHARS = 512


@dataclass(frozen=True, slots=True)
class BatchLine:
    """One request."""

    custom_id: str
    body: dict[str, Any]


class _BadLineError(ValueError):
    """What is wrong with a line."""

    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.code, self.param = code, param


def read_line(raw: bytes) -> BatchLine:
    """A line that was checked."""
    data = json.loads(raw)
    return BatchLine(data["custom_id"], data["body"])


def check_lines(file: BinaryIO, endpoint: str, max_bytes: int) -> tuple[int, list[dict[str, Any]]]:
    """The number of requests, and what is wrong with the file, at most the first twenty problems."""
    seen: set[str] = set()
    problems: list[dict[str, Any]] = []
    number = 0
    while (raw := file.readline(max_bytes + 1)) and len(problems) < MAX_PROBLEMS:
        number += 1
        if len(raw) > max_bytes:
            problems.append(_problem("line_too_long", f"line {number} has over {max_bytes:,} bytes", number))
            break
        if not raw.strip():
            continue
        try:
            seen.add(_check(raw, endpoint, seen))
        except _BadLineError as error:
            problems.append(_problem(error.code, f"line {number}: {error}", number, error.param))
        if len(seen) > MAX_LINES:
            problems.append(_problem("too_many_requests", f"the file has more than {MAX_LINES:,} requests", number))
            break
    if not seen and not problems:
        problems.append(_problem("empty_file", "the file has no requests", None))
    return len(seen), problems


def _problem(code: str, message: str, line: int | None, param: str | None = None) -> dict[str, Any]:
    return {"code": code, "message": message, "line": line, "param": param}


def _check(raw: bytes, endpoint: str, seen: set[str]) -> str:
    """The id of a good line. Raises _BadLineError."""
    try:
        data = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise _BadLineError("invalid_json", "this is not JSON") from error
    if not isinstance(data, dict):
        raise _BadLineError("invalid_json", "this is no JSON object")
    line = cast("dict[str, Any]", data)
    custom_id = line.get("custom_id")
    if not isinstance(custom_id, str) or not 0 < len(custom_id) <= MAX_ID_CHARS:
        raise _BadLineError("invalid_custom_id", f"custom_id has to be a text of 1 to {MAX_ID_CHARS} characters", "custom_id")
    if custom_id in seen:
        raise _BadLineError("duplicate_custom_id", f"custom_id {custom_id!r:.100} stands here twice", "custom_id")
    if line.get("method") != "POST":
        raise _BadLineError("invalid_method", "method has to be POST", "method")
    if line.get("url") != endpoint:
        raise _BadLineError("mismatched_endpoint", f"url has to be {endpoint}, the batch's endpoint", "url")
    if not isinstance(line.get("body"), dict):
        raise _BadLineError("invalid_body", "body has to be an object", "body")
    return custom_id


class LineWriter:
    """Appends whole lines to a file, and finds what an earlier process left there."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        self.ids = list(self._recovered())

    def _recovered(self) -> Iterator[str]:
        """The ids of the lines that are whole; a torn last one is cut off."""
        end = 0
        with os.fdopen(os.dup(self._descriptor), "rb") as file:
            file.seek(0)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                end += len(line)
                yield json.loads(line)["custom_id"]
        os.ftruncate(self._descriptor, end)

    def write(self, value: dict[str, Any]) -> None:
        """Append a line. Raises OSError; the file is then as it was."""
        line = dumps(value) + b"\n"
        before = os.fstat(self._descriptor).st_size
        try:
            left = line
            while left:
                left = left[os.write(self._descriptor, left) :]
        except OSError:
            os.ftruncate(self._descriptor, before)
            raise

    def close(self) -> None:
        """To the disk, and closed."""
        os.fsync(self._descriptor)
        os.close(self._descriptor)
