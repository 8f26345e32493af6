"""The file of one cache block: header, content, checksum. Bytes only; knows nothing of folders, models or tensors.

    magic 8 | version u32 | length u64 | digest 32 | layout 128, padded with zeros | content, `length` bytes | checksum 32

Numbers are little-endian. `layout` says dtype and shape of what the content holds, one behind the other. The checksum is a keyed BLAKE2b
(RFC 7693) over all before it, so that whoever lacks the folder's secret cannot make a file that is taken.
"""

from __future__ import annotations

import hashlib
import hmac
import struct

MAGIC = b"herd-kv\n"
VERSION = 1
CHECKSUM_BYTES = 32
_HEADER = struct.Struct("<8sIQ32s128s")
HEADER_BYTES = _HEADER.size
FRAME_BYTES = HEADER_BYTES + CHECKSUM_BYTES
"""What a file takes beside its content."""


class BlockFormat:
    """Files whose content has one layout and length, under one key."""

    def __init__(self, *, layout: str, content_bytes: int, key: bytes) -> None:
        self._layout = layout.encode("ascii")
        assert len(self._layout) <= 128, f"the layout {layout!r} is too long for the header"
        self.content_bytes = content_bytes
        self._sum = hashlib.blake2b(key=key, digest_size=CHECKSUM_BYTES, person=b"herd file")

    @property
    def file_bytes(self) -> int:
        """What every file takes."""
        return self.content_bytes + FRAME_BYTES

    def _header(self, digest: bytes) -> bytes:
        return _HEADER.pack(MAGIC, VERSION, self.content_bytes, digest, self._layout)

    def encode(self, digest: bytes, content: memoryview) -> tuple[bytes, memoryview, bytes]:
        """What stands before the content, the content, and what stands behind it."""
        assert content.nbytes == self.content_bytes, f"a block of {content.nbytes} bytes, not {self.content_bytes}"
        header, total = self._header(digest), self._sum.copy()
        total.update(header)
        total.update(content)
        return header, content, total.digest()

    def decode(self, data: bytearray, digest: bytes) -> memoryview | None:
        """The content of a file, which `data` still holds; None where it is not this block's, whole and undamaged."""
        if len(data) != self.file_bytes or data[:HEADER_BYTES] != self._header(digest):
            return None
        view = memoryview(data)
        total = self._sum.copy()
        total.update(view[:-CHECKSUM_BYTES])
        if not hmac.compare_digest(total.digest(), view[-CHECKSUM_BYTES:]):
            return None
        return view[HEADER_BYTES:-CHECKSUM_BYTES]
