"""The tokenizer file of Llama 3: tiktoken's text format, one `base64(token bytes) rank` a line, ranks 0, 1, 2... in order.

Reads and writes the file and nothing else. Everything it declares is checked: a damaged or foreign file is refused with the line that
shows it.
"""

from __future__ import annotations

import base64
import binascii
from pathlib import Path

from herd.base.atomic import atomic_file
from herd.base.errors import NotFoundError, TokenizerError

MAX_FILE_BYTES = 64 * 2**20
MAX_TOKEN_BYTES = 4096

Ranks = dict[bytes, int]


def _parse_line(path: Path, number: int, line: bytes, rank: int) -> bytes:
    where = f"{path}, line {number}"
    parts = line.split(b" ")
    if len(parts) != 2:
        raise TokenizerError(f"{where}: {line[:60]!r} is not `base64 rank`", hint="this is not a tokenizer.model in tiktoken's format")
    try:
        token = base64.b64decode(parts[0], validate=True)
    except binascii.Error as error:
        raise TokenizerError(f"{where}: {parts[0][:40]!r} is not base64 ({error})", hint="the file is damaged: fetch it again") from error
    if parts[1] != str(rank).encode():
        raise TokenizerError(f"{where}: rank {parts[1][:20]!r} where {rank} was due", hint="ranks run 0, 1, 2... with none left out")
    if not 1 <= len(token) <= MAX_TOKEN_BYTES:
        raise TokenizerError(
            f"{where}: a token of {len(token)} bytes (limit {MAX_TOKEN_BYTES})", hint="the file is damaged: fetch it again"
        )
    return token


def parse_ranks(data: bytes, path: Path) -> Ranks:
    """Token bytes to ranks, from a file's content. Raises TokenizerError naming the first line that is wrong."""
    sound = _all_at_once(data)
    if sound is not None:
        check_ranks(sound, str(path))
        return sound
    ranks: Ranks = {}
    lines = data.split(b"\n")
    if lines and lines[-1] == b"":
        lines.pop()
    for number, line in enumerate(lines, start=1):
        token = _parse_line(path, number, line.rstrip(b"\r"), number - 1)
        if token in ranks:
            raise TokenizerError(
                f"{path}, line {number}: token {token[:20]!r} is there twice (ranks {ranks[token]} and {number - 1})",
                hint="the file is damaged: fetch it again",
            )
        ranks[token] = number - 1
    check_ranks(ranks, str(path))
    return ranks


def _all_at_once(data: bytes) -> Ranks | None:
    """The ranks of a file that is written as `write_ranks` writes; None for any other, which is read line by line."""
    words = data.split()[::2]
    if b"".join(b"%b %d\n" % (word, rank) for rank, word in enumerate(words)) != data:
        return None
    try:
        ranks = {binascii.a2b_base64(word, strict_mode=True): rank for rank, word in enumerate(words)}
    except binascii.Error:
        return None
    return ranks if len(ranks) == len(words) and max(map(len, ranks), default=0) <= MAX_TOKEN_BYTES and b"" not in ranks else None


def check_ranks(ranks: Ranks, where: str) -> None:
    """Refuse a vocabulary that cannot spell every text, or whose ranks are not 0, 1, 2... in some order. Raises TokenizerError."""
    missing = [byte for byte in range(256) if bytes([byte]) not in ranks]
    if missing:
        raise TokenizerError(
            f"{where} lacks {len(missing)} of the 256 single bytes, the first is 0x{missing[0]:02x}",
            hint="a byte-level vocabulary needs all of them; the file may be cut short",
        )
    if sorted(ranks.values()) != list(range(len(ranks))):
        raise TokenizerError(f"the ranks of {where} have holes or repeat", hint="ranks run 0, 1, 2... with none left out")
    wrong = next((token for token in ranks if not 1 <= len(token) <= MAX_TOKEN_BYTES), None)
    if wrong is not None:
        raise TokenizerError(
            f"{where} holds a token of {len(wrong):,} bytes (limit {MAX_TOKEN_BYTES:,})", hint="the file is damaged: fetch it again"
        )


def read_ranks(path: Path) -> Ranks:
    """Read a rank file. Raises NotFoundError if there is none, TokenizerError if it is not one."""
    try:
        size_bytes = path.stat().st_size
        if size_bytes > MAX_FILE_BYTES:
            raise TokenizerError(
                f"{path} has {size_bytes:,} bytes (limit {MAX_FILE_BYTES:,})",
                hint="a tokenizer.model has about 2 MB; is this another file?",
            )
        data = path.read_bytes()
    except OSError as error:
        raise NotFoundError(f"cannot read {path}: {error.strerror}", hint="check the path") from error
    return parse_ranks(data, path)


def write_ranks(ranks: Ranks, path: Path) -> None:
    """Write a rank file, whole or not at all."""
    lines = [base64.b64encode(token) + b" " + str(rank).encode() for token, rank in sorted(ranks.items(), key=lambda item: item[1])]
    with atomic_file(path) as temporary:
        temporary.write_bytes(b"\n".join(lines) + b"\n")
