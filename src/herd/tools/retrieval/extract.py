"""A file's bytes as text: plain text, Markdown, HTML, JSON, CSV, PDF and Word, told apart by name and by first bytes.

Everything is bounded before it is read. PDF and Word are read by libraries that hostile files can make slow or large, so that happens in a
process of its own with limits on time and memory (`documents`). Offsets of passages are places in this text.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import PurePosixPath

from herd.base.errors import HerdError
from herd.tools.errors import ToolError
from herd.tools.web.html import page_text

MIB = 2**20
_PLAIN = frozenset((
    ".txt", ".md", ".markdown", ".rst", ".tex", ".log", ".py", ".js", ".ts", ".java", ".c", ".h", ".cpp", ".hpp", ".cs", ".go",
    ".rs", ".rb", ".php", ".sh", ".css", ".sql", ".toml", ".yaml", ".yml", ".ini", ".xml",
))  # fmt: skip
_HTML = frozenset((".html", ".htm", ".xhtml"))
_TABLE = {".csv": ",", ".tsv": "\t"}
_JSON = frozenset((".json", ".jsonl", ".ndjson"))
KINDS = (*sorted(_PLAIN), *sorted(_HTML), *sorted(_TABLE), *sorted(_JSON), ".pdf", ".docx")


@dataclass(frozen=True, kw_only=True, slots=True)
class ExtractLimits:
    """The most that one file may take: bytes of it, characters of its text, seconds, bytes of memory, and bytes that a zip unpacks to."""

    file_bytes: int = 64 * MIB
    text_chars: int = 16 * MIB
    timeout_s: float = 120.0
    memory_bytes: int = 2048 * MIB
    unpacked_bytes: int = 256 * MIB


class UnsupportedFileError(ToolError):
    """A file of a kind that is not read."""

    code = "unsupported_file"


class InvalidFileError(ToolError):
    """A file that is damaged, hostile or over a limit."""

    code = "invalid_file"


def extract_text(name: str, data: bytes, limits: ExtractLimits | None = None) -> str:
    """The text of a file. Raises UnsupportedFileError, InvalidFileError."""
    limits = limits or ExtractLimits()
    if len(data) > limits.file_bytes:
        raise InvalidFileError(f"the file has {len(data):,} bytes, {limits.file_bytes:,} are read at most", hint="split it")
    text = _text_of(name, data, limits).replace("\0", "\ufffd")
    if len(text) > limits.text_chars:
        raise InvalidFileError(f"the file has {len(text):,} characters, {limits.text_chars:,} are read at most", hint="split it")
    return text


def _text_of(name: str, data: bytes, limits: ExtractLimits) -> str:
    ending = PurePosixPath(name.replace("\\", "/")).suffix.lower()
    if data.startswith(b"%PDF-") or ending == ".pdf":
        return _in_process("pdf", data, limits)
    if ending == ".docx":
        return _in_process("docx", data, limits)
    if data.startswith((b"PK\x03\x04", b"\x1f\x8b", b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"\x7fELF")):
        raise UnsupportedFileError(f"{name[:100]!r} is no text", hint="these are read: " + " ".join(KINDS))
    text = _decoded(name, data)
    if ending in _HTML:
        page = page_text(text, "")
        return f"{page.title}\n{page.text}" if page.title and not page.text.startswith(page.title) else page.text
    if ending in _TABLE:
        return _table(text, _TABLE[ending])
    if ending in _JSON:
        return _json(name, text, lines=ending != ".json")
    if ending in _PLAIN or not ending:
        return text
    raise UnsupportedFileError(f"{name[:100]!r} is of a kind that is not read", hint="these are: " + " ".join(KINDS))


def _decoded(name: str, data: bytes) -> str:
    """UTF-8, or UTF-16 by its mark; bytes that are neither are refused rather than guessed at."""
    try:
        if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            return data.decode("utf-16")
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidFileError(f"{name[:100]!r} is not UTF-8 (byte {error.start:,})", hint="save it as UTF-8") from error


def _table(text: str, delimiter: str) -> str:
    """Each row as `column: value` pairs, so that a passage tells what its numbers are of."""
    try:
        rows = list(csv.reader(io.StringIO(text), delimiter=delimiter))
    except csv.Error as error:
        raise InvalidFileError(f"the table cannot be read: {error}", hint="check its quotes") from error
    if len(rows) < 2:
        return text
    header = rows[0]
    lines = ["; ".join(f"{name}: {value}" for name, value in zip(header, row, strict=False) if value) for row in rows[1:]]
    return "\n".join(line for line in lines if line)


def _json(name: str, text: str, *, lines: bool) -> str:
    """Indented, a value a line, with letters as letters."""
    try:
        values = [json.loads(line) for line in text.splitlines() if line.strip()] if lines else [json.loads(text)]
        return "\n".join(json.dumps(value, ensure_ascii=False, indent=None if lines else 1) for value in values)
    except (ValueError, RecursionError) as error:
        raise InvalidFileError(f"{name[:100]!r} is not JSON: {str(error)[:100]}", hint="correct it, or name it .txt") from error


def _in_process(kind: str, data: bytes, limits: ExtractLimits) -> str:
    """Read it in a process that may take no more than its limits, and knows none of our secrets."""
    # -I keeps the working folder and the user's packages out; so it is told where herd and its libraries are.
    start = f"import sys; sys.path[:0] = {[part for part in sys.path if part]!r}; from herd.tools.retrieval.documents import main; main()"
    sizes = (limits.memory_bytes, limits.unpacked_bytes, limits.text_chars, int(limits.timeout_s) + 1)
    program = [sys.executable, "-I", "-c", start, kind, *map(str, sizes)]
    try:
        done = subprocess.run(
            program, input=data, capture_output=True, timeout=limits.timeout_s, env={"PYTHONUTF8": "1", "LC_ALL": "C.UTF-8"}, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise InvalidFileError(f"the {kind} file took over {limits.timeout_s:g} s to read", hint="split it, or save it again") from error
    if done.returncode == 0:
        return done.stdout.decode("utf-8", "replace")
    last = done.stderr.decode("utf-8", "replace").strip().rsplit("\n", 1)[-1][:200]
    reason = last.removeprefix("refused: ") if last.startswith("refused: ") else "it is damaged, or takes more memory than is allowed"
    raise InvalidFileError(f"the {kind} file cannot be read: {reason}", hint="open it and save it again, or save it as text")


def reason_of(error: Exception) -> tuple[str, str]:
    """OpenAI's code of why a file failed, and the sentence."""
    if isinstance(error, UnsupportedFileError | InvalidFileError):
        return error.code, error.message if error.hint is None else f"{error.message} ({error.hint})"
    if isinstance(error, HerdError) and error.code not in ("engine", "storage"):
        return "server_error", error.message
    return "server_error", "an error of the server; its log tells more"
