"""Streaming decode: tokens in one by one, text out as soon as its characters are whole.

A token can end in the middle of a UTF-8 character; its bytes are held back until the rest arrives. What `push` and `finish` return, joined,
equals decoding all the bytes at once with invalid ones replaced.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable


class StreamDecoder:
    """Decode token ids as they come. `token_bytes` gives the bytes of an id."""

    def __init__(self, token_bytes: Callable[[int], bytes]) -> None:
        self._token_bytes = token_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token_id: int) -> str:
        """The text that this token completes; empty while a character is still open."""
        return self._decoder.decode(self._token_bytes(token_id))

    def finish(self) -> str:
        """What is left: a replacement character if a character was never completed, else nothing."""
        return self._decoder.decode(b"", final=True)
