"""Compressed data, unpacked a piece at a time and never beyond a limit: a few kilobytes can spell gigabytes."""

from __future__ import annotations

import zlib

from herd.tools.errors import ToolError

_PIECE = 1 << 16
ENCODINGS = ("gzip", "deflate", "identity")


class TooLargeError(ToolError):
    """More data than the limit, found before it was there."""

    code = "too_large"


class Inflater:
    """Unpacks gzip or deflate as it comes. Raises TooLargeError once it is over `limit`, ToolError for data that is none."""

    def __init__(self, encoding: str, limit: int) -> None:
        self._limit = limit
        self._size = 0
        self._encoding = encoding
        # 32 added to the window: gzip and zlib headers are told apart by themselves.
        self._machine = None if encoding == "identity" else zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)
        self._at_start = True

    def feed(self, data: bytes) -> bytes:
        """What a piece of the data unpacks to."""
        if self._machine is None:
            return self._counted(data)
        out = bytearray()
        while data:
            try:
                out += self._counted(self._machine.decompress(data, _PIECE))
            except zlib.error as error:
                if not (self._at_start and self._encoding == "deflate"):
                    raise ToolError("the compressed data is damaged", hint="try another source") from error
                # Some servers send deflate without its header.
                self._machine = zlib.decompressobj(wbits=-zlib.MAX_WBITS)
                self._at_start = False
                continue
            self._at_start = False
            data = self._machine.unconsumed_tail
            if self._machine.eof:
                data = self._machine.unused_data
                if not data or self._encoding != "gzip" or not data.startswith(b"\x1f\x8b"):
                    break
                self._machine = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)
        return bytes(out)

    def _counted(self, data: bytes) -> bytes:
        self._size += len(data)
        if self._size > self._limit:
            raise TooLargeError(f"unpacked, the data is over the limit of {self._limit} bytes", hint="ask for a smaller one")
        return data


def gunzip(data: bytes, limit: int) -> bytes:
    """A whole gzip file. Raises TooLargeError, ToolError."""
    return Inflater("gzip", limit).feed(data)
