"""A multipart form with one file, written to disk as it comes: bounded in size and time, and never held in memory. RFC 7578."""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass, field
from email.message import Message
from pathlib import Path
from typing import TYPE_CHECKING

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect, Request

from herd.stack.errors import RequestError

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

MAX_FIELD_BYTES = 4096
MAX_PARTS = 16
MAX_HEADER_BYTES = 8192
FORM_SLACK_BYTES = 64 * 1024
"""What a form may have beside its file."""


@dataclass(slots=True)
class Upload:
    """A form that was read: its plain fields, and the file's name and size."""

    fields: dict[str, str] = field(default_factory=dict[str, str])
    filename: str | None = None
    size_bytes: int = 0


class _Form:
    """Called by the parser with what it finds."""

    def __init__(self, descriptor: int, max_bytes: int) -> None:
        self.upload = Upload()
        self._descriptor, self._max_bytes = descriptor, max_bytes
        self._num_parts = self._header_bytes = 0
        self._header: list[bytes] = [b"", b""]
        self._name = ""
        self._is_file = False
        self._value = b""
        self.ended = False

    def callbacks(self) -> MultipartCallbacks:
        """By the parser's names."""
        return {
            "on_part_begin": self._begin,
            "on_header_field": lambda data, start, end: self._add_header(0, data[start:end]),
            "on_header_value": lambda data, start, end: self._add_header(1, data[start:end]),
            "on_header_end": self._header_end,
            "on_part_data": lambda data, start, end: self._data(data[start:end]),
            "on_part_end": self._end,
            "on_end": self._finish,
        }

    def _begin(self) -> None:
        self._num_parts += 1
        self._header_bytes = 0
        self._header, self._name, self._is_file, self._value = [b"", b""], "", False, b""
        if self._num_parts > MAX_PARTS:
            raise RequestError("format", f"the form has more than {MAX_PARTS} parts", hint="send a file and its purpose")

    def _add_header(self, place: int, data: bytes) -> None:
        self._header_bytes += len(data)
        if self._header_bytes > MAX_HEADER_BYTES:
            raise RequestError("format", f"a part's headers have more than {MAX_HEADER_BYTES:,} bytes", hint="send a shorter file name")
        self._header[place] += data

    def _header_end(self) -> None:
        name, value = self._header
        self._header = [b"", b""]
        if name.lower() != b"content-disposition":
            return
        _, options = parse_options_header(value)
        self._name = options.get(b"name", b"").decode("utf-8", "replace")
        if b"filename" in options:
            if self.upload.filename is not None:
                raise RequestError("format", "the form has two files", hint="send one file at a time", param="file")
            if self._name != "file":
                raise RequestError("format", f"the form's file is named {self._name!r:.100}", hint="name it `file`", param="file")
            self._is_file = True
            self.upload.filename = options[b"filename"].decode("utf-8", "replace")[:512]

    def _data(self, data: bytes) -> None:
        if self._is_file:
            self.upload.size_bytes += len(data)
            if self.upload.size_bytes > self._max_bytes:
                raise too_large(self._max_bytes)
            while data:
                data = data[os.write(self._descriptor, data) :]
            return
        self._value += data
        if len(self._value) > MAX_FIELD_BYTES:
            raise RequestError("format", f"the form's field {self._name!r:.100} has over {MAX_FIELD_BYTES:,} bytes", hint="send less")

    def _end(self) -> None:
        if not self._is_file:
            self.upload.fields[self._name] = self._value.decode("utf-8", "replace")

    def _finish(self) -> None:
        self.ended = True


def too_large(limit: int) -> RequestError:
    """Of a file over the limit."""
    return RequestError("too_large", f"the file has more than {limit:,} bytes", hint="split it", param="file")


def _boundary(request: Request) -> bytes:
    message = Message()
    message["content-type"] = request.headers.get("content-type", "")
    boundary = message.get_param("boundary")
    if message.get_content_type() != "multipart/form-data" or not isinstance(boundary, str) or not 0 < len(boundary) <= 200:
        raise RequestError("format", "the body is no multipart form", hint="send a form with the fields `file` and `purpose`")
    return boundary.encode("latin-1", "replace")


async def read_upload(request: Request, path: Path, *, max_bytes: int, timeout_s: float) -> Upload:
    """Read a form, its file to `path`. Raises RequestError; the file is then gone."""
    announced = request.headers.get("content-length", "0")
    if announced.isdecimal() and int(announced) > max_bytes + FORM_SLACK_BYTES:
        raise too_large(max_bytes)
    boundary = _boundary(request)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        form = _Form(descriptor, max_bytes)
        await _feed(request, MultipartParser(boundary, form.callbacks()), max_bytes + FORM_SLACK_BYTES, timeout_s)
        if not form.ended:
            raise RequestError("format", "the form is cut off: its last boundary is missing", hint="send it again, whole")
        if form.upload.filename is None:
            raise RequestError("usage", "the form has no file", hint="send it as the field `file`, with a file name", param="file")
        await asyncio.to_thread(os.fsync, descriptor)
    except BaseException as error:
        path.unlink(missing_ok=True)
        if isinstance(error, FormParserError):
            raise RequestError("format", f"the form is damaged: {error}", hint="send it as a client library writes it") from error
        if isinstance(error, ClientDisconnect):
            raise RequestError("slow", "the client left while it was sending") from error
        if isinstance(error, OSError) and not isinstance(error, TimeoutError):
            raise RequestError(
                "overloaded", f"the file cannot be written: {error.strerror}", hint="the server's disk may be full"
            ) from error
        raise
    finally:
        os.close(descriptor)
    return form.upload


async def _feed(request: Request, parser: MultipartParser, max_bytes: int, timeout_s: float) -> None:
    """The body, piece by piece, into the parser."""
    size = 0
    pieces = request.stream()
    while True:
        try:
            piece = await asyncio.wait_for(anext(pieces), timeout_s)
        except StopAsyncIteration:
            break
        except TimeoutError:
            raise RequestError("slow", f"the file did not go on for {timeout_s:g} s", hint="send it at once") from None
        size += len(piece)
        if size > max_bytes:
            raise too_large(max_bytes)
        parser.write(piece)
    parser.finalize()
