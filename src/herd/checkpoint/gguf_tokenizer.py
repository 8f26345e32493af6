"""The tokenizer in a GGUF file: tokens in the byte alphabet, token types, merges and special ids, from a herd Tokenizer and back.

Byte-level BPE with Llama 3's text splitting only (`gpt2` / `llama-bpe` in llama.cpp's words). A token's rank is its place in the
list, so merges are redundant; they are checked against it. The model may have more rows than tokens: the rest are unused tokens
named [PADn], as llama.cpp writes them.
Source: llama.cpp's convert_hf_to_gguf.py, `_set_vocab_gpt2`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from herd.base.errors import TokenizerError
from herd.checkpoint.gguf_format import Array, Metadata, ValueType, array, flag, text, u32
from herd.checkpoint.gguf_read import GgufFile
from herd.text.byte_alphabet import decode_chars, encode_bytes, ranks_to_merges
from herd.text.specials import BEGIN_OF_TEXT, END_OF_TEXT, EOM, EOT, FINETUNE_RIGHT_PAD
from herd.text.tokenizer import SPLIT_REGEX, Tokenizer

MODEL = "gpt2"
SPLITTERS = ("llama-bpe", "llama3", "llama-v3")
"""llama.cpp's names of Llama 3's text splitting; the first is what its converter writes."""

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5

_PREFIX = "tokenizer.ggml."
_ID_KEYS = {
    "bos_token_id": BEGIN_OF_TEXT,
    "eos_token_id": END_OF_TEXT,
    "eot_token_id": EOT,
    "eom_token_id": EOM,
    "padding_token_id": FINETUNE_RIGHT_PAD,
}
_OTHER = "herd reads Llama 3 tokenizers only; give the model's tokenizer.model instead"


def tokenizer_metadata(tokenizer: Tokenizer, vocab_size: int) -> Metadata:
    """The `tokenizer.` keys of a file whose model has `vocab_size` rows. Raises TokenizerError if they cannot hold this tokenizer."""
    if tokenizer.vocab_size > vocab_size:
        raise TokenizerError(
            f"the tokenizer has {tokenizer.vocab_size:,} tokens, the model {vocab_size:,} rows", hint="give the model's own tokenizer"
        )
    if tokenizer.split_regex != SPLIT_REGEX:
        raise TokenizerError("the tokenizer splits text in its own way", hint="GGUF names splittings, and has no name for this one")
    tokens, types = [f"[PAD{token_id}]" for token_id in range(vocab_size)], [UNUSED] * vocab_size
    for token, rank in tokenizer.ranks.items():
        tokens[rank], types[rank] = encode_bytes(token), NORMAL
    for name, token_id in tokenizer.special_tokens.items():
        tokens[token_id], types[token_id] = name, CONTROL
    merges = [f"{encode_bytes(left)} {encode_bytes(right)}" for left, right in ranks_to_merges(tokenizer.ranks)]
    ids = {key: tokenizer.special_tokens[name] for key, name in _ID_KEYS.items() if name in tokenizer.special_tokens}
    keys = {
        "model": text(MODEL),
        "pre": text(SPLITTERS[0]),
        "tokens": array(ValueType.STRING, tokens),
        "token_type": array(ValueType.INT32, types),
        "merges": array(ValueType.STRING, merges),
        **{key: u32(token_id) for key, token_id in ids.items()},
        "add_bos_token": flag(BEGIN_OF_TEXT in tokenizer.special_tokens),
    }
    return {_PREFIX + key: typed for key, typed in keys.items()}


def gguf_tokenizer(path: Path | str) -> Tokenizer:
    """The tokenizer of a GGUF file.

    Raises:
        NotFoundError: there is no such file.
        CheckpointError: it is not a GGUF file, or a damaged one.
        TokenizerError: it holds no tokenizer, one of another kind, or a damaged one.
    """
    file = GgufFile(path)
    try:
        return tokenizer_from_metadata(file.metadata, str(path))
    finally:
        file.close()


def tokenizer_from_metadata(metadata: Metadata, where: str) -> Tokenizer:
    """The tokenizer that a file's keys describe; `where` names the file in errors. Raises TokenizerError."""
    _check_kind(metadata, where)
    tokens = _array(metadata, "tokens", ValueType.STRING, where)
    types = _array(metadata, "token_type", ValueType.INT32, where)
    if len(types) != len(tokens):
        raise TokenizerError(f"{where}: {len(tokens):,} tokens but {len(types):,} token types", hint="the file is damaged: fetch it again")
    ranks = _ranks(tokens, types, where)
    specials = dict(_specials(tokens, types, len(ranks), where))
    _check_merges(_array(metadata, "merges", ValueType.STRING, where), ranks, where)
    _check_ids(metadata, specials, where)
    return Tokenizer(ranks, special_tokens=specials)


def _check_kind(metadata: Metadata, where: str) -> None:
    for key, known in (("model", (MODEL,)), ("pre", SPLITTERS)):
        typed = metadata.get(_PREFIX + key)
        if typed is None:
            raise TokenizerError(
                f"{where} has no {_PREFIX}{key}", hint="the file holds no tokenizer: give the model's tokenizer.model instead"
            )
        if typed.value not in known:
            raise TokenizerError(f"{where}: {_PREFIX}{key} is {str(typed.value)[:40]!r}, not {' or '.join(known)}", hint=_OTHER)


def _array(metadata: Metadata, key: str, item: ValueType, where: str) -> Sequence[Any]:
    typed = metadata.get(_PREFIX + key)
    if typed is None or not isinstance(typed.value, Array) or typed.value.item is not item:
        raise TokenizerError(f"{where}: {_PREFIX}{key} is not an array of {item.name}", hint=_OTHER)
    return typed.value.values


def _ranks(tokens: Sequence[str], types: Sequence[int], where: str) -> dict[bytes, int]:
    """The ordinary tokens, which come first; their places are their ranks."""
    ranks: dict[bytes, int] = {}
    for rank, (name, kind) in enumerate(zip(tokens, types, strict=True)):
        if kind != NORMAL:
            break
        token = decode_chars(name)
        if not token or token in ranks:
            raise TokenizerError(
                f"{where}: token {rank:,} {name[:40]!r} is empty or there twice", hint="the file is damaged: fetch it again"
            )
        ranks[token] = rank
    return ranks


def _specials(tokens: Sequence[str], types: Sequence[int], start: int, where: str) -> Iterator[tuple[str, int]]:
    seen: set[str] = set()
    for token_id in range(start, len(tokens)):
        name, kind = tokens[token_id], types[token_id]
        if kind == UNUSED:
            continue
        if kind not in (CONTROL, USER_DEFINED) or not name or name in seen:
            raise TokenizerError(
                f"{where}: token {token_id:,} {name[:40]!r} of type {kind} is out of place",
                hint="after the ordinary tokens come special ones, each once; " + _OTHER,
            )
        seen.add(name)
        yield name, token_id


def _check_merges(merges: Sequence[str], ranks: dict[bytes, int], where: str) -> None:
    """Merges must make tokens in the order of their ranks: then ranks alone encode as the merges do."""
    last = 0
    for number, merge in enumerate(merges):
        left, _, right = merge.partition(" ")
        parts = decode_chars(left), decode_chars(right)
        rank = ranks.get(b"".join(parts), -1)
        if rank < last or parts[0] not in ranks or parts[1] not in ranks:
            raise TokenizerError(f"{where}: merge {number:,} {merge[:40]!r} does not follow the order of the tokens", hint=_OTHER)
        last = rank


def _check_ids(metadata: Metadata, specials: dict[str, int], where: str) -> None:
    typed = metadata.get(_PREFIX + "bos_token_id")
    if typed is not None and BEGIN_OF_TEXT in specials and typed.value != specials[BEGIN_OF_TEXT]:
        raise TokenizerError(
            f"{where}: bos_token_id is {str(typed.value)[:40]}, {BEGIN_OF_TEXT} is token {specials[BEGIN_OF_TEXT]:,}",
            hint="the keys contradict each other",
        )
