"""Train a byte-level BPE vocabulary: the file format, split regex and special tokens of Llama 3 on any text.

The counting and merging are Hugging Face `tokenizers`' (Rust, all cores); this file feeds it in bounded pieces and turns the result into
ranks. Ranks 0..255 are the single bytes in their order, then the merges in the order they were learned, so rank order is merge order.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import Any, cast

from tokenizers import Regex, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as HubTokenizer

from herd.base.errors import TokenizerError
from herd.base.progress import track_steps
from herd.text.byte_alphabet import BYTE_TO_CHAR, decode_chars
from herd.text.rank_file import Ranks
from herd.text.tokenizer import SPLIT_REGEX, Tokenizer, without_surrogates

_PIECE_CHARS = 2**18
MAX_VOCAB = 1_000_000


def _pieces(texts: Iterable[str]) -> Iterator[str]:
    """Bounded pieces of the texts, cut at line ends where there are any: a whole file as one text costs no more memory than its own."""
    for raw in texts:
        text = without_surrogates(raw)
        start = 0
        while start < len(text):
            end = _line_end(text, start, start + _PIECE_CHARS)
            yield text[start:end]
            start = end


def _line_end(text: str, start: int, limit: int) -> int:
    """The last line end up to `limit` that no white space follows: the split regex always cuts there. `limit` if there is none."""
    if limit >= len(text):
        return len(text)
    at = text.rfind("\n", start, limit)
    while at >= 0 and text[at + 1].isspace():
        at = text.rfind("\n", start, at)
    return at + 1 if at >= 0 else limit


def train_bpe(texts: Iterable[str], vocab_size: int, *, progress: bool = False, min_frequency: int = 2) -> Tokenizer:
    """Learn `vocab_size` base tokens (256 bytes and merges) from texts; the 256 special tokens come on top.

    Args:
        texts: any iterable of strings; read once, in a stream. Memory holds the distinct pieces that the split regex makes, not the text.
        vocab_size: base tokens, from 256 on.
        progress: show a bar of the text read.
        min_frequency: a pair seen less often is not merged.

    Raises:
        TokenizerError: the size is out of range, or the text has too few distinct pairs to fill it.
    """
    if not 256 <= vocab_size <= MAX_VOCAB:
        raise TokenizerError(
            f"vocab_size is {vocab_size:,}; it must be 256 to {MAX_VOCAB:,}", hint="256 bytes come first; 32768 is a good size"
        )
    hub = _hub_tokenizer()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        show_progress=False,
        initial_alphabet=list(BYTE_TO_CHAR.values()),
        max_token_length=128,
    )
    hub.train_from_iterator(_tracked(texts, progress), trainer=trainer)
    ranks = _ranks(hub)
    if len(ranks) < vocab_size:
        raise TokenizerError(
            f"the text gave {len(ranks):,} tokens of the {vocab_size:,} asked for", hint="use more text or a smaller --vocab-size"
        )
    return Tokenizer(ranks)


def _hub_tokenizer() -> HubTokenizer:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    hub = HubTokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(SPLIT_REGEX), behavior="isolated")
    hub.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])  # pyright: ignore[reportAttributeAccessIssue]
    return hub


def _tracked(texts: Iterable[str], progress: bool) -> Iterator[str]:
    num_bytes = 0
    if not progress:
        yield from _pieces(texts)
        return
    with track_steps("reading text for the tokenizer", total=None, unit="bytes") as advance:
        for piece in _pieces(texts):
            num_bytes += len(piece)
            yield piece
            advance(num_bytes, "then merging")


def _ranks(hub: HubTokenizer) -> Ranks:
    """Single bytes first, in byte order; then every merged token in the order its merge was learned."""
    import json

    model: dict[str, Any] = json.loads(hub.to_str())["model"]
    ranks: Ranks = {bytes([byte]): byte for byte in range(256)}
    for merge in model["merges"]:
        left, right = cast("list[str]", merge) if isinstance(merge, list) else str(merge).split(" ")
        ranks.setdefault(decode_chars(left + right), len(ranks))
    return ranks
