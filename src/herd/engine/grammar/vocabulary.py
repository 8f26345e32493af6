"""A tokenizer as grammars see it: the bytes of each id, which ids are no text, which ones end an answer. No tokenizer is imported.

Grammars are enforced byte by byte, so all 256 bytes have to be tokens: then every text can be written, and every grammar's end be reached.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
from llguidance import LLTokenizer, TokenizerWrapper
from numpy.typing import NDArray

from herd.base.errors import FormatError

_SPACES = b" \t\n\r\x0b\x0c"


class GrammarVocabulary:
    """What the compiler and all states share. About 90 MiB and half a second for 128,000 tokens.

    Args:
        token_bytes: the bytes of every id in order; those of special ids are not looked at.
        special_ids: ids that are no text; grammars never allow one, but for the end ids and the python tag.
        stop_ids: ids that end an answer.
        split_regex: how the tokenizer cuts text. With it, text without alternative is forced in the tokenizer's own pieces.
        size: rows of the model's output, where it has more than there are tokens.
    """

    def __init__(
        self,
        token_bytes: Sequence[bytes],
        *,
        special_ids: Collection[int],
        stop_ids: Collection[int],
        split_regex: str | None = None,
        size: int | None = None,
    ) -> None:
        self.size = len(token_bytes) if size is None else size
        self.stop_ids = frozenset(stop_ids)
        self.num_words = (self.size + 31) // 32
        _check(token_bytes, special_ids, self.stop_ids, self.size)
        no_text = frozenset(special_ids) | frozenset(token_id for token_id, token in enumerate(token_bytes) if not token)
        self._text: list[bytes | None] = [None if token_id in no_text else bytes(token) for token_id, token in enumerate(token_bytes)]
        self._text += [None] * (self.size - len(token_bytes))
        self.forces = split_regex is not None
        self.tokenizer = self._tokenizer(split_regex)
        self.stop_mask = self._mask(self.stop_ids)
        self.space_mask = self._mask([token_id for token_id, token in enumerate(self._text) if token and token[0] in _SPACES])

    def space_run(self, token_id: int, before: int) -> int:
        """How much white space a text ends in after this id, when it ended in so much before."""
        token = self._text[token_id]
        if token is None:
            return 0
        rest = len(token.rstrip(_SPACES))
        return len(token) - rest if rest else before + len(token)

    def _mask(self, ids: Collection[int]) -> NDArray[np.uint32]:
        bits = np.zeros(self.num_words * 32, np.uint8)
        bits[list(ids)] = 1
        return np.packbits(bits, bitorder="little").view(np.uint32)

    def _tokenizer(self, split_regex: str | None) -> LLTokenizer:
        stops = sorted(self.stop_ids)
        names = {f"<|special {token_id}|>": token_id for token_id, token in enumerate(self._text) if token is None}
        if split_regex is None:
            return LLTokenizer(TokenizerWrapper(_Bytes(self._text, stops[0])), eos_token=stops, slices=LLTokenizer.json_slices())
        ranks: dict[bytes, int] = {}
        for token_id, token in enumerate(self._text):
            if token is not None:
                ranks.setdefault(token, token_id)
        build = LLTokenizer.from_tiktoken  # type: ignore[attr-defined]
        return build(encoder=ranks, special_tokens=names, pattern=split_regex, eos_token=stops, n_vocab=self.size)


class _Bytes:
    """The shape that llguidance asks of a tokenizer."""

    def __init__(self, text: Sequence[bytes | None], eos_token_id: int) -> None:
        self.tokens = [b"<|special %d|>" % token_id if token is None else token for token_id, token in enumerate(text)]
        self.special_token_ids = [token_id for token_id, token in enumerate(text) if token is None]
        self.eos_token_id, self.bos_token_id = eos_token_id, None

    def __call__(self, text: bytes | str) -> list[int]:
        raise NotImplementedError("without a split regex nothing is forced, so nothing is tokenized")


def _check(token_bytes: Sequence[bytes], special_ids: Collection[int], stop_ids: Collection[int], size: int) -> None:
    if size < len(token_bytes):
        raise FormatError(f"the model has {size:,} outputs for {len(token_bytes):,} tokens", hint="give the tokenizer of this model")
    if not stop_ids or not all(0 <= token_id < size for token_id in (*stop_ids, *special_ids)):
        raise FormatError(f"end ids {sorted(stop_ids)} or special ids are not among {size:,} tokens", hint="give ids of this tokenizer")
    single = {token for token_id, token in enumerate(token_bytes) if len(token) == 1 and token_id not in special_ids}
    if len(single) < 256:
        raise FormatError(
            f"only {len(single)} of the 256 bytes are tokens, so a grammar could not always reach its end",
            hint="use a byte-level tokenizer",
        )
