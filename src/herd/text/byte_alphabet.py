"""GPT-2's byte alphabet and the merge list: how tokenizer.json and GGUF files spell what herd keeps as bytes and ranks.

Printable bytes stand for themselves; the 68 others (space, control characters, 0x7f to 0xa0 and 0xad) are U+0100 onwards, in
byte order, so every token is a string without spaces. Knows no file format. The alphabet: `bytes_to_unicode` in GPT-2's released
encoder (Radford et al. 2019).

A rank file holds no merges: tiktoken joins the neighbours whose union has the lowest rank. `ranks_to_merges` recovers the pair
that this rule joins last for each token, which is the merge that a trainer would have recorded.
"""

from __future__ import annotations

import heapq

from herd.base.errors import TokenizerError

MAX_SCAN_PARTS = 64

_PRINTABLE = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))


def _byte_to_char() -> dict[int, str]:
    hidden = [byte for byte in range(256) if byte not in _PRINTABLE]
    table = {byte: chr(byte) for byte in _PRINTABLE} | {byte: chr(0x100 + number) for number, byte in enumerate(hidden)}
    return dict(sorted(table.items()))


BYTE_TO_CHAR: dict[int, str] = _byte_to_char()
"""The character of each of the 256 bytes."""

_CHAR_TO_BYTE = {char: byte for byte, char in BYTE_TO_CHAR.items()}
_LATIN_TO_ALPHABET = str.maketrans({chr(byte): char for byte, char in BYTE_TO_CHAR.items()})


def encode_bytes(token: bytes) -> str:
    """A token's bytes in the byte alphabet, one character a byte.

    >>> encode_bytes(b" the")
    'Ġthe'
    """
    return token.decode("latin-1").translate(_LATIN_TO_ALPHABET)


def decode_chars(text: str) -> bytes:
    """The bytes that a string of the byte alphabet stands for. Raises TokenizerError for a character outside it."""
    try:
        return bytes(map(_CHAR_TO_BYTE.__getitem__, text))
    except KeyError as error:
        raise TokenizerError(
            f"{text[:40]!r} holds {error.args[0]!r}, which is not in the byte alphabet",
            hint="the vocabulary is not byte-level BPE in GPT-2's spelling, or the file is damaged",
        ) from error


def ranks_to_merges(ranks: dict[bytes, int]) -> list[tuple[bytes, bytes]]:
    """The merge list of a vocabulary: for each token of two bytes or more, in rank order, the two parts that BPE joins to make it.

    A token that merging never reaches has no entry: 588 of Llama 3's 128,000, which tiktoken takes only where they are a whole word.
    A reader of the list must therefore look whole words up first (`ignore_merges` in tokenizer.json); the two then agree.
    """
    merges: list[tuple[bytes, bytes]] = []
    for token, _ in sorted(ranks.items(), key=lambda item: item[1]):
        pair = last_merge(token, ranks)
        if pair is not None:
            merges.append(pair)
    return merges


def last_merge(token: bytes, ranks: dict[bytes, int]) -> tuple[bytes, bytes] | None:
    """The two parts that BPE joins last to make a token; None for a single byte and for a token that merging never reaches."""
    if len(token) < 2:
        return None
    return _last_merge(token, ranks) if len(token) <= MAX_SCAN_PARTS else _last_merge_of_long(token, ranks)


def _last_merge(token: bytes, ranks: dict[bytes, int]) -> tuple[bytes, bytes] | None:
    """Join the lowest-ranked neighbours, the leftmost of equals, until two parts make the token; None if they never do."""
    get, never = ranks.get, len(ranks)
    cuts = list(range(len(token) + 1))
    scores = [get(token[start : start + 2], never) for start in range(len(token) - 1)]
    while len(scores) > 1:
        lowest = min(scores)
        if lowest == never:
            return None
        at = scores.index(lowest)
        del cuts[at + 1], scores[at]
        if at < len(scores):
            scores[at] = get(token[cuts[at] : cuts[at + 2]], never)
        if at:
            scores[at - 1] = get(token[cuts[at - 1] : cuts[at + 1]], never)
    return token[: cuts[1]], token[cuts[1] :]


def _last_merge_of_long(token: bytes, ranks: dict[bytes, int]) -> tuple[bytes, bytes] | None:
    """The same with a heap and linked parts: n log n, so that a hostile file of long tokens cannot stall us."""
    size = len(token)
    after, before = [*range(1, size + 1)], [*range(-1, size - 1)]
    heap: list[tuple[int, int, int]] = []

    def offer(left: int) -> None:
        middle = after[left] if left >= 0 else size
        if middle < size:
            rank = ranks.get(token[left : after[middle]])
            if rank is not None:
                heapq.heappush(heap, (rank, left, after[middle]))

    for left in range(size - 1):
        offer(left)
    while heap:
        _, left, end = heapq.heappop(heap)
        middle = after[left]
        if middle >= size or after[middle] != end:
            continue
        if end - left == size:
            return token[:middle], token[middle:]
        after[left], after[middle] = end, size
        if end < size:
            before[end] = left
        offer(left)
        offer(before[left])
    return None
