"""Hugging Face's tokenizer.json: read where a checkpoint has no tokenizer.model, and written beside it.

Only byte-level BPE with Llama 3's split regex is a Llama 3 tokenizer; anything else is refused with what differs. Ids must be ranks,
since our encoder merges by rank: vocabulary order has to be merge order, as it is in every Llama 3 checkpoint.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from herd.base.atomic import atomic_file
from herd.base.errors import NotFoundError, TokenizerError
from herd.text.byte_alphabet import decode_chars, encode_bytes, last_merge, ranks_to_merges
from herd.text.rank_file import Ranks, check_ranks
from herd.text.specials import BEGIN_OF_TEXT, EOT
from herd.text.tokenizer import SPLIT_REGEX, Tokenizer

MAX_FILE_BYTES = 256 * 2**20
_MAX_UNMERGED_BYTES = 2**20
"""All tokens without a merge together; Llama 3 has 588, whole words that merging never reaches. Bounds the time to tell them apart."""
_FOREIGN = "herd reads byte-level BPE as Llama 3 uses it; is this another model's tokenizer?"


def _load(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise TokenizerError(
                f"{path} has {path.stat().st_size:,} bytes (limit {MAX_FILE_BYTES:,})", hint="a tokenizer.json has about 10 MB"
            )
        data = json.loads(path.read_bytes())
    except OSError as error:
        raise NotFoundError(f"cannot read {path}: {error.strerror}", hint="check the path") from error
    except (ValueError, RecursionError) as error:
        raise TokenizerError(f"{path} is not JSON: {error}", hint="the file is damaged: fetch it again") from error
    if not isinstance(data, dict):
        raise TokenizerError(f"{path} holds {type(data).__name__}, not an object", hint=_FOREIGN)
    return cast("dict[str, Any]", data)


def _object(value: Any, what: str, path: Path) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TokenizerError(f"{path}: {what} is {type(value).__name__}, not an object", hint=_FOREIGN)
    return cast("dict[str, Any]", value)


def _check_split(data: Mapping[str, Any], path: Path) -> None:
    """Refuse a file that cuts text into pieces otherwise than by Llama 3's regex and then bytes. Raises TokenizerError."""
    pre = _object(data.get("pre_tokenizer"), "pre_tokenizer", path)
    steps = cast("list[Any]", pre.get("pretokenizers")) if isinstance(pre.get("pretokenizers"), list) else [pre]
    split, byte_level = [_object(step, "a pre-tokenizer", path) for step in steps] if len(steps) == 2 else ({}, {})
    if split.get("type") != "Split" or byte_level.get("type") != "ByteLevel":
        raise TokenizerError(f"{path} does not split text by a regular expression and then into bytes", hint=_FOREIGN)
    found = _object(split.get("pattern"), "the split pattern", path).get("Regex")
    if found != SPLIT_REGEX:
        raise TokenizerError(f"{path} splits text by {str(found)[:80]!r}, not as Llama 3 does", hint=_FOREIGN)
    if split.get("behavior") != "Isolated" or split.get("invert"):
        raise TokenizerError(f"{path} drops or joins what its regular expression finds ({split.get('behavior')!r})", hint=_FOREIGN)
    if byte_level.get("use_regex", True) or byte_level.get("add_prefix_space", True):
        raise TokenizerError(f"{path} splits its pieces again, or puts a space before them", hint=_FOREIGN)


def _ranks(model: Mapping[str, Any], specials: Mapping[str, int], path: Path) -> Ranks:
    vocab = _object(model.get("vocab"), "model.vocab", path)
    ranks: Ranks = {}
    for token, token_id in sorted(vocab.items(), key=lambda item: item[1] if isinstance(item[1], int) else -1):
        if not isinstance(token_id, int) or isinstance(token_id, bool) or token_id < 0:
            raise TokenizerError(f"{path}: token {token[:40]!r} has the id {token_id!r}", hint="ids are whole numbers from 0")
        if specials.get(token) == token_id:
            continue
        if token_id != len(ranks):
            raise TokenizerError(f"{path}: id {token_id} where {len(ranks)} was due", hint="base ids run 0, 1, 2... with none left out")
        ranks[decode_chars(token)] = token_id
    return ranks


def _check_merges(model: Mapping[str, Any], ranks: Ranks, path: Path) -> None:
    """Refuse a vocabulary whose ids are not in merge order, or that lacks a merge: encoding by rank would differ."""
    merges = model.get("merges")
    if not isinstance(merges, list):
        raise TokenizerError(f"{path}: model.merges is {type(merges).__name__}, not a list", hint=_FOREIGN)
    last, merged = -1, set[int]()
    for merge in cast("list[Any]", merges):
        parts: Any = merge.split(" ") if isinstance(merge, str) else merge
        rank = ranks.get(decode_chars("".join(cast("list[str]", parts)))) if _is_pair(parts) else None
        if rank is None:
            raise TokenizerError(
                f"{path}: merge {str(merge)[:80]} makes no token of the vocabulary", hint="the file is damaged: fetch it again"
            )
        if rank < last:
            raise TokenizerError(f"{path}: merge {merge!r} comes after a token of a later id", hint=_FOREIGN)
        last = rank
        merged.add(rank)
    lacking = [token for token, rank in ranks.items() if len(token) > 1 and rank not in merged]
    if sum(map(len, lacking)) > _MAX_UNMERGED_BYTES or any(last_merge(token, ranks) for token in lacking):
        raise TokenizerError(
            f"{path}: no merge makes {len(lacking):,} of the tokens, the first is {encode_bytes(lacking[0])[:40]!r}", hint=_FOREIGN
        )


def _is_pair(parts: Any) -> bool:
    return (
        isinstance(parts, list) and len(cast("list[Any]", parts)) == 2 and all(isinstance(part, str) for part in cast("list[Any]", parts))
    )


def read_tokenizer_json(path: Path) -> Tokenizer:
    """Read a tokenizer.json. Raises NotFoundError if there is none, TokenizerError if it is damaged or not of Llama 3's kind."""
    data = _load(path)
    model = _object(data.get("model"), "model", path)
    if model.get("type", "BPE") != "BPE":
        raise TokenizerError(f"{path} holds a {model.get('type')!r} model", hint=_FOREIGN)
    if data.get("normalizer") is not None:
        raise TokenizerError(f"{path} normalises text before splitting it", hint=_FOREIGN)
    odd = next((key for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix") if model.get(key)), None)
    if odd is not None:
        raise TokenizerError(f"{path}: model.{odd} is {str(model[odd])[:40]!r}", hint=_FOREIGN)
    specials: dict[str, int] = {}
    added_tokens: Any = data.get("added_tokens") or []
    if not isinstance(added_tokens, list):
        raise TokenizerError(f"{path}: added_tokens is {type(added_tokens).__name__}, not a list", hint=_FOREIGN)
    for added in cast("list[Any]", added_tokens):
        entry = _object(added, "an added token", path)
        if not isinstance(entry.get("id"), int) or not isinstance(entry.get("content"), str):
            raise TokenizerError(
                f"{path}: an added token without id or content: {str(entry)[:80]}", hint="the file is damaged: fetch it again"
            )
        specials[entry["content"]] = entry["id"]
    ranks = _ranks(model, specials, path)
    check_ranks(ranks, str(path))
    _check_merges(model, ranks, path)
    if len(set(specials.values())) != len(specials) or any(not len(ranks) <= number < len(ranks) + 65536 for number in specials.values()):
        raise TokenizerError(f"{path}: ids of special tokens overlap others or lie far out", hint="special ids follow the base vocabulary")
    _check_split(data, path)
    return Tokenizer(ranks, special_tokens=specials)


def _added(tokenizer: Tokenizer) -> list[dict[str, Any]]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return [{"id": number, "content": name, **flags} for name, number in sorted(tokenizer.special_tokens.items(), key=lambda item: item[1])]


def to_tokenizer_json(tokenizer: Tokenizer) -> dict[str, Any]:
    """The content of a tokenizer.json that encodes as `tokenizer` does, with <|begin_of_text|> put first as Llama's own file has it."""
    bos = {"id": BEGIN_OF_TEXT, "type_id": 0}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    split = {"type": "Split", "pattern": {"Regex": tokenizer.split_regex}, "behavior": "Isolated", "invert": False}
    sequence_a, sequence_b = {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}
    template: dict[str, Any] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": bos}, sequence_a],
        "pair": [{"SpecialToken": bos}, sequence_a, {"SpecialToken": {**bos, "type_id": 1}}, sequence_b],
        "special_tokens": {BEGIN_OF_TEXT: {"id": BEGIN_OF_TEXT, "ids": [tokenizer.bos_id], "tokens": [BEGIN_OF_TEXT]}},
    }
    merges = [[encode_bytes(left), encode_bytes(right)] for left, right in ranks_to_merges(tokenizer.ranks)]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added(tokenizer),
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "post_processor": {"type": "Sequence", "processors": [{**byte_level, "use_regex": True}, template]},
        "decoder": {**byte_level, "add_prefix_space": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": True,
            "vocab": {encode_bytes(token): rank for token, rank in tokenizer.ranks.items()},
            "merges": merges,
        },
    }


def write_tokenizer_json(tokenizer: Tokenizer, folder: Path) -> None:
    """Write tokenizer.json, tokenizer_config.json and special_tokens_map.json into a folder, as transformers reads them."""
    config = {
        "added_tokens_decoder": {
            str(entry["id"]): {key: value for key, value in entry.items() if key != "id"} for entry in _added(tokenizer)
        },
        "bos_token": BEGIN_OF_TEXT,
        "eos_token": EOT,
        "pad_token": tokenizer.special_name(tokenizer.pad_id),
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": 131072,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    names = {"bos_token": BEGIN_OF_TEXT, "eos_token": EOT, "pad_token": config["pad_token"]}
    files = {"tokenizer.json": to_tokenizer_json(tokenizer), "tokenizer_config.json": config, "special_tokens_map.json": names}
    for name, content in files.items():
        with atomic_file(folder / name) as temporary:
            temporary.write_text(json.dumps(content, ensure_ascii=False, indent=None if name == "tokenizer.json" else 1), encoding="utf-8")
