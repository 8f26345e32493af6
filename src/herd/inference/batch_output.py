"""The file that a batch writes: one JSON object a line, as answers come. A run that was killed goes on from it. No torch.

    {"custom_id": "a", "line": 1, "outputs": [{"text": ..., "finish_reason": ..., "usage": ...}]}
    {"custom_id": "b", "line": 2, "error": {"code": ..., "message": ..., "hint": ...}}

A line is whole or, being the last, torn; a torn one is dropped at the next start. What is done is kept as eight bytes a line.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from array import array
from pathlib import Path
from types import TracebackType
from typing import Any

from herd.base.errors import FormatError, NotFoundError, UsageError

_BEGINNING = b'{"custom_id": '


class BatchOutput:
    """Opened for one run at a time. Raises UsageError where another run writes, FormatError for a file that no batch wrote."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._done = array("Q")
        self.num_done = 0
        try:
            self._file = open(path, "a+b")  # noqa: SIM115 - closed by __exit__
        except OSError as error:
            raise NotFoundError(f"cannot write {path}: {error.strerror}", hint="give a path in a folder that you may write to") from error
        try:
            self._lock()
            self._resume()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> BatchOutput:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with self._file:
            self._file.flush()
            os.fsync(self._file.fileno())

    def is_done(self, number: int, custom_id: str) -> bool:
        """Whether a line of the input has its answer. Raises FormatError where that is the answer to a line of another name."""
        found = self._done[number] if number < len(self._done) else 0
        if found and found != _mark(custom_id):
            raise FormatError(
                f"{self.path} answers line {number} of another input: {custom_id!r} is not the custom_id there",
                hint="give another output, or the input that it belongs to",
            )
        return bool(found)

    def write(self, number: int, custom_id: str, **found: Any) -> None:
        """Add the answer to a line of the input."""
        entry = {"custom_id": custom_id, "line": number} | found
        try:
            line = json.dumps(entry, ensure_ascii=False).encode()
        except UnicodeEncodeError:  # half a surrogate pair, which only an escape can say
            line = json.dumps(entry).encode()
        self._file.write(line + b"\n")
        self._file.flush()
        self._note(number, custom_id)

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UsageError(f"another run writes to {self.path}", hint="wait for it, or give another output") from error

    def _resume(self) -> None:
        """Read what is done; drop a torn last line."""
        self._file.seek(0)
        end = 0
        for place, raw in enumerate(self._file, start=1):
            if not raw.endswith(b"\n"):
                if not (raw.startswith(_BEGINNING) or _BEGINNING.startswith(raw)):
                    raise self._foreign(place)
                break
            try:
                entry = json.loads(raw)
                self._note(int(entry["line"]), str(entry["custom_id"]))
            except (ValueError, KeyError, TypeError, OverflowError) as error:
                raise self._foreign(place) from error
            end += len(raw)
        self._file.truncate(end)
        self._file.seek(0, os.SEEK_END)

    def _foreign(self, place: int) -> FormatError:
        return FormatError(f"{self.path} exists and its line {place} is not of a batch", hint="give another output")

    def _note(self, number: int, custom_id: str) -> None:
        if not 0 < number < 2**40:
            raise ValueError(number)
        self._done.extend([0] * (number + 1 - len(self._done)))
        if self._done[number]:
            raise FormatError(f"{self.path} has two answers to line {number}", hint="delete one of the two")
        self._done[number] = _mark(custom_id)
        self.num_done += 1


def _mark(custom_id: str) -> int:
    """Eight bytes that stand for a name; never 0."""
    return int.from_bytes(hashlib.blake2b(custom_id.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little") | 1
