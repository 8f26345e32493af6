"""Read records from files: JSON lines and plain text (each also .gz, .zst), Parquet, WARC, HTML; one at a time, never the whole file.

A file is a local path or a URL that fsspec opens (s3://, gs://, https://, memory://). Knows files and field shapes, nothing of tokens. A
corpus record has `text` (and `lang`, `source`, `id`, `url`); a chat record has `messages`; question sets carry `question` and `answer`
(and perhaps `context`). `to_messages` brings the last two to one shape.
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

import fsspec
import zstandard

from herd.base.errors import FormatError, NotFoundError

Record = dict[str, Any]

TEXT_ENDINGS = (".jsonl", ".txt", ".md")
ENDINGS = (
    *(ending + packed for ending in TEXT_ENDINGS for packed in ("", ".gz", ".zst")),
    ".parquet",
    ".warc",
    ".warc.gz",
    ".wet.gz",
    ".html",
    ".htm",
)
"""The names of files that hold records."""

_PACKED_BYTES = 2**12
"""Read from a compressed file at once; a hostile one swells each to 128 MiB at most."""
MAX_LINE_BYTES = 2**27
"""The longest line that is read: one that never ends would fill the memory."""
_DAMAGE = (zstandard.ZstdError, gzip.BadGzipFile, zlib.error, EOFError)


class _ZstdReader(io.RawIOBase):
    """The unpacked bytes of a zstd file, of one frame or several. Raises EOFError on a frame without an end, where zstandard just stops."""

    def __init__(self, raw: Any) -> None:
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
def opened(path: Path | str) -> Iterator[IO[bytes]]:
    """Open a local file or a URL for its bytes as they are. Raises NotFoundError."""
    try:
        remote = isinstance(path, str) and "://" in path
        raw = cast("IO[bytes]", cast("Any", fsspec.open(path, "rb")).open() if remote else Path(path).open("rb"))  # noqa: SIM115 - closed below
    except (OSError, ValueError, ImportError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise NotFoundError(f"cannot read {path}: {reason}", hint="check the path, or the folder given with --data") from error
    with raw:
        yield raw


@contextmanager
def _unpacked(path: Path | str) -> Iterator[IO[bytes]]:
    """Open a file for its bytes, those of .gz and .zst unpacked. Raises NotFoundError, FormatError on a damaged file."""
    with opened(path) as raw:
        stream: Any = raw
        if str(path).endswith(".gz"):
            stream = gzip.GzipFile(fileobj=raw)
        elif str(path).endswith(".zst"):
            stream = io.BufferedReader(_ZstdReader(raw), 2**17)
        try:
            yield stream
        except _DAMAGE as error:
            raise FormatError(f"{path} is damaged or not compressed as its name says: {error}", hint="fetch the file again") from error


def read_lines(path: Path | str) -> Iterator[tuple[int, str]]:
    """Every line of a text file (.gz and .zst are unpacked) with its number, from 1.

    Raises FormatError naming one that is not UTF-8 or is over `MAX_LINE_BYTES`.
    """
    with _unpacked(path) as stream:
        number = 0
        while line := stream.readline(MAX_LINE_BYTES + 1):
            number += 1
            if len(line) > MAX_LINE_BYTES:
                reason = f"longer than {MAX_LINE_BYTES // 2**20} MiB"
                raise FormatError(f"{path}, line {number}: {reason}", hint="one record a line; break long documents into several")
            try:
                text = line.decode()
            except UnicodeDecodeError as error:
                reason = f"not UTF-8 ({error.reason} at byte {error.start})"
                raise FormatError(f"{path}, line {number}: {reason}", hint="convert it: iconv -t UTF-8") from error
            yield number, text


def read_jsonl(path: Path | str) -> Iterator[Record]:
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


def read_plain(path: Path | str) -> Iterator[Record]:
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


def read_records(path: Path | str) -> Iterator[Record]:
    """Every record of a file, by its name. Pages of WARC and HTML files come as their text. Raises FormatError for other names."""
    return _pages_as_text(read_raw(path))


def read_raw(path: Path | str) -> Iterator[Record]:
    """Every record of a file, by its name; pages as they are, in `html`. Raises FormatError for other names."""
    name = str(path).lower().removesuffix(".gz").removesuffix(".zst")
    if name.endswith(TEXT_ENDINGS):
        return read_jsonl(path) if name.endswith(".jsonl") else read_plain(path)
    if name.endswith(".parquet"):
        from herd.data.parquet import read_parquet

        return read_parquet(path)
    if name.endswith((".warc", ".wet")):
        from herd.data.web import read_warc

        return read_warc(path)
    if name.endswith((".html", ".htm")):
        from herd.data.web import read_html

        return read_html(path)
    raise FormatError(
        f"{path} is neither JSON lines nor text, Parquet, WARC or HTML",
        hint="use .jsonl, .jsonl.zst, .jsonl.gz, .txt, .parquet, .warc.gz or .html",
    )


def _pages_as_text(records: Iterator[Record]) -> Iterator[Record]:
    for record in records:
        if isinstance(record.get("html"), str) and not isinstance(record.get("text"), str):
            from herd.data.web import html_to_text

            record["text"] = html_to_text(record.pop("html"))
        yield record


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
