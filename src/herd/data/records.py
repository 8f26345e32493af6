"""Read records from files: JSON lines (plain, .gz, .zst) and plain text, one at a time, never the whole file.

Knows files and field shapes, nothing of tokens. A corpus record has `text` (and `lang`, `source`, `id`); a chat record has `messages`;
question sets carry `question` and `answer` (and perhaps `context`). `to_messages` brings the last two to one shape.
"""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

import zstandard

from herd.base.errors import FormatError, NotFoundError

Record = dict[str, Any]

_PACKED_BYTES = 2**12
"""Read from a compressed file at once; a hostile one swells each to 128 MiB at most."""
_DAMAGE = (zstandard.ZstdError, gzip.BadGzipFile, zlib.error, EOFError)


class _ZstdReader(io.RawIOBase):
    """The unpacked bytes of a zstd file, of one frame or several. Raises EOFError on a frame without an end, where zstandard just stops."""

    def __init__(self, raw: IO[bytes]) -> None:
        self._raw = raw
        self._frame = zstandard.ZstdDecompressor().decompressobj()
        self._inside = False
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        """It can only be read."""
        return True

    def readinto(self, buffer: Any, /) -> int:
        """Fill `buffer` with what comes next; 0 at the end."""
        while not self._ready and (packed := self._frame.unused_data or self._raw.read(_PACKED_BYTES)):
            if self._frame.eof:
                self._frame = zstandard.ZstdDecompressor().decompressobj()
            self._ready = memoryview(self._frame.decompress(packed))
            self._inside = not self._frame.eof
        if not self._ready and self._inside:
            raise EOFError("its last frame has no end")
        count = min(len(buffer), len(self._ready))
        buffer[:count], self._ready = self._ready[:count], self._ready[count:]
        return count


@contextmanager
def _unpacked(path: Path) -> Iterator[IO[bytes]]:
    """Open a file for its bytes, those of .gz and .zst unpacked. Raises NotFoundError, FormatError on a damaged file."""
    try:
        raw = path.open("rb")
    except OSError as error:
        raise NotFoundError(f"cannot read {path}: {error.strerror}", hint="check the path, or the folder given with --data") from error
    with raw:
        stream: Any = raw
        if path.suffix == ".gz":
            stream = gzip.GzipFile(fileobj=raw)
        elif path.suffix == ".zst":
            stream = io.BufferedReader(_ZstdReader(raw), 2**17)
        try:
            yield stream
        except _DAMAGE as error:
            raise FormatError(f"{path} is damaged or not compressed as its name says: {error}", hint="fetch the file again") from error


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Every line of a text file (.gz and .zst are unpacked) with its number, from 1. Raises FormatError naming one that is not UTF-8."""
    with _unpacked(path) as stream:
        for number, line in enumerate(stream, start=1):
            try:
                text = line.decode()
            except UnicodeDecodeError as error:
                reason = f"not UTF-8 ({error.reason} at byte {error.start})"
                raise FormatError(f"{path}, line {number}: {reason}", hint="convert it: iconv -t UTF-8") from error
            yield number, text


def read_jsonl(path: Path) -> Iterator[Record]:
    """Every JSON object of a JSON-lines file. Raises FormatError naming the line that is not one."""
    for number, line in read_lines(path):
        if line.strip():
            yield _parse_line(line, f"{path}, line {number}")


def _parse_line(line: str, where: str) -> Record:
    """One line as a JSON object whose text can be written as UTF-8: JSON can spell half a surrogate pair, which is no character."""
    try:
        record = json.loads(line)
        if "\\ud" in line.lower():
            json.dumps(record, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise FormatError(f"{where}: half a surrogate pair is no character", hint="write the text as UTF-8, not as \\u escapes") from error
    except (ValueError, RecursionError) as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
        raise FormatError(f"{where}: not JSON ({reason})", hint="one JSON object a line") from error
    if not isinstance(record, dict):
        raise FormatError(f"{where}: {type(record).__name__}, not an object", hint="one JSON object a line")
    return cast("Record", record)


def read_plain(path: Path) -> Iterator[Record]:
    """A plain text file as records: documents are separated by a line of only `---`, or the whole file is one."""
    buffer: list[str] = []
    for _, line in read_lines(path):
        if line.strip() == "---":
            if "".join(buffer).strip():
                yield {"text": "".join(buffer).strip()}
            buffer = []
        else:
            buffer.append(line)
    if "".join(buffer).strip():
        yield {"text": "".join(buffer).strip()}


def read_records(path: Path) -> Iterator[Record]:
    """Every record of a file, by its name: .jsonl (.gz, .zst) or .txt (.gz, .zst). Raises FormatError for other names."""
    name = path.name.removesuffix(".gz").removesuffix(".zst")
    if name.endswith(".jsonl"):
        return read_jsonl(path)
    if name.endswith((".txt", ".md")):
        return read_plain(path)
    raise FormatError(f"{path} is neither JSON lines nor text", hint="use .jsonl, .jsonl.zst, .jsonl.gz or .txt")


def to_messages(record: Record) -> list[dict[str, str]]:
    """The dialogue of a chat, question-answer or translation record as role/content pairs. Raises FormatError for other shapes."""
    if isinstance(record.get("messages"), list) and record["messages"]:
        return [_checked(turn) for turn in record["messages"]]
    if isinstance(record.get("en"), str) and isinstance(record.get("hi"), str):
        return _turn(f"Translate to Hindi: {record['en']}", record["hi"])
    question, answer = record.get("question"), record.get("answer")
    if isinstance(answer, list) and answer:
        answer = answer[0]
    if isinstance(question, str) and isinstance(answer, str):
        context = record.get("context")
        return _turn(f"{context}\n\n{question}" if context else question, answer)
    raise FormatError(
        f"a record with the fields {sorted(record)} holds no dialogue", hint="chat data needs `messages`, or `question` and `answer`"
    )


def _checked(turn: Any) -> dict[str, str]:
    if not isinstance(turn, dict) or not isinstance(turn.get("role"), str) or not isinstance(turn.get("content"), str):
        raise FormatError(f"a turn of a dialogue is {str(turn)[:80]!r}", hint="a turn is an object with `role` and `content`, both text")
    return turn


def _turn(question: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
