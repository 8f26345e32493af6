"""The data of a run: a trained tokenizer, packed rows for every source, held-out rows for every language. Cached in the run's folder.

A cache file is named by a digest of what made it (source, tokenizer, length, stage), so a changed override is never served stale rows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from herd.base.atomic import atomic_directory, atomic_file
from herd.base.config_io import to_toml
from herd.base.errors import ConfigError
from herd.base.log import get_logger
from herd.data.loader import RowSource
from herd.data.packed import PackedTokens
from herd.data.rows import Document, Rows, pack
from herd.data.token_shards import INDEX, TokenDataset
from herd.data.tokenise import tokenizer_digest
from herd.recipes.config import RecipeConfig
from herd.recipes.dialogue import TODAY
from herd.recipes.sources import encode_record, is_heldout, read_source, record_text
from herd.text.bpe_train import train_bpe
from herd.text.prompt import PromptFormat
from herd.text.tokenizer import Tokenizer, load_tokenizer
from herd.train.config import SourceConfig, StageConfig
from herd.train.trainer import HeldOut

log = get_logger(__name__)

_HELDOUT_CHARACTERS = 600
_HELDOUT_PIECES = 8


def prepare_tokenizer(config: RecipeConfig, data: Path | None, folder: Path) -> Tokenizer:
    """Train the recipe's tokenizer into `folder`, or copy the one that it names; load it if it is there."""
    if (folder / "tokenizer.model").exists():
        return load_tokenizer(folder)
    if config.tokenizer.path:
        tokenizer = load_tokenizer(Path(config.tokenizer.path))
        if tokenizer.vocab_size != config.model.vocab_size:
            raise ConfigError(
                f"the tokenizer in {config.tokenizer.path} has {tokenizer.vocab_size} tokens, the model {config.model.vocab_size} rows",
                hint=f"set model.vocab_size={tokenizer.vocab_size} and tokenizer.vocab_size={tokenizer.num_base}",
            )
        with atomic_directory(folder) as temporary:
            tokenizer.save(temporary)
        return tokenizer

    def texts() -> Iterator[str]:
        for source in config.tokenizer.sources:
            for record in read_source(source, data, seed=config.seed):
                text = record_text(record)
                if not is_heldout(text, config.heldout_one_in):
                    yield text

    tokenizer = train_bpe(texts(), config.tokenizer.vocab_size, progress=True)
    with atomic_directory(folder) as temporary:
        tokenizer.save(temporary)
    return tokenizer


def _cache_name(source: SourceConfig, stage: StageConfig, config: RecipeConfig, tokenizer_digest: str) -> str:
    key = f"{to_toml(source)}|{tokenizer_digest}|{stage.sequence_length}|{stage.answers_only}|{config.seed}|{config.heldout_one_in}"
    return f"{source.name}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.npz"


def _documents(
    source: SourceConfig, stage: StageConfig, config: RecipeConfig, data: Path | None, tokenizer: Tokenizer
) -> Iterator[Document]:
    chat = PromptFormat(today=TODAY)
    for record in read_source(source, data, seed=config.seed):
        if source.kind == "text" and is_heldout(record_text(record), config.heldout_one_in):
            continue
        yield encode_record(record, source, tokenizer, chat, answers_only=stage.answers_only)


def prepare_rows(
    stage: StageConfig, config: RecipeConfig, data: Path | None, tokenizer: Tokenizer, *, digest: str, cache: Path
) -> dict[str, RowSource]:
    """Packed rows of every source of a stage that has a positive weight at some time: in memory, or on disk from token folders."""
    rows: dict[str, RowSource] = {}
    for source in stage.used_sources:
        if (tokens := token_folder(source, data)) is not None:
            rows[source.name] = _open_tokens(tokens, source, stage, tokenizer_folder=cache.parent / "tokenizer", cache=cache)
            continue
        path = pack_source(source, stage, config, data, tokenizer, digest=digest, cache=cache)
        rows[source.name] = _read_rows(path)
    return rows


def missing_sources(stage: StageConfig, config: RecipeConfig, data: Path | None, *, digest: str, cache: Path) -> list[SourceConfig]:
    """The sources of a stage whose rows have to be packed first."""
    packed = [source for source in stage.used_sources if token_folder(source, data) is None]
    return [source for source in packed if not (cache / _cache_name(source, stage, config, digest)).exists()]


def pack_source(
    source: SourceConfig, stage: StageConfig, config: RecipeConfig, data: Path | None, tokenizer: Tokenizer, *, digest: str, cache: Path
) -> Path:
    """The file of a source's packed rows, made if it is not there. Several processes may make those of different sources at once."""
    path = cache / _cache_name(source, stage, config, digest)
    if path.exists():
        return path
    documents = _documents(source, stage, config, data, tokenizer)
    packed = pack(documents, stage.sequence_length, pad_id=tokenizer.pad_id, split=source.kind == "text")
    if packed.num_dropped:
        log.warning(
            "%s: %d of %d dialogues are over %d tokens and were left out",
            source.name, packed.num_dropped, packed.num_documents, stage.sequence_length + 1,
        )  # fmt: skip
    _write_rows(path, packed)
    return path


def token_folder(source: SourceConfig, data: Path | None) -> Path | None:
    """The folder of `herd data tokenize` that a source names, if it names one."""
    if source.path.startswith(("own:", "package:")):
        return None
    folder = (data or Path()) / source.path
    return folder if (folder / INDEX).is_file() else None


def _open_tokens(folder: Path, source: SourceConfig, stage: StageConfig, *, tokenizer_folder: Path, cache: Path) -> PackedTokens:
    dataset = TokenDataset(folder)
    mine = tokenizer_digest(str(tokenizer_folder))
    if dataset.tokenizer != mine:
        raise ConfigError(
            f"the tokens of source {source.name!r} are another tokenizer's ({dataset.tokenizer[:12]}, the run's is {mine[:12]})",
            hint="set tokenizer.path to the tokenizer that they were made with",
        )
    return PackedTokens(dataset, stage.sequence_length, split=source.kind == "text", cache=cache / f"{source.name}.packed")


def _write_rows(path: Path, rows: Rows) -> None:
    with atomic_file(path) as temporary, temporary.open("wb") as file:
        np.savez(
            file,
            tokens=rows.tokens,
            documents=rows.documents,
            counts=rows.counts,
            numbers=np.array([rows.num_documents, rows.num_dropped]),
        )


def _read_rows(path: Path) -> Rows:
    with np.load(path, allow_pickle=False) as arrays:
        return Rows(
            tokens=arrays["tokens"],
            documents=arrays["documents"],
            counts=arrays["counts"],
            num_documents=int(arrays["numbers"][0]),
            num_dropped=int(arrays["numbers"][1]),
        )


def prepare_heldout(config: RecipeConfig, data: Path | None, tokenizer: Tokenizer) -> dict[str, HeldOut]:
    """For every language, the openings of held-out documents up to `heldout_bytes`, in pieces of at most 600 characters."""
    texts: dict[str, list[str]] = {}
    sizes: dict[str, int] = {}
    for source in config.pretrain.sources:
        if source.kind != "text" or source.weight == 0 or token_folder(source, data) is not None:
            continue
        for record in read_source(source, data, seed=config.seed):
            language = str(record.get("lang") or "en")
            text = record_text(record)
            if sizes.get(language, 0) < config.heldout_bytes and is_heldout(text, config.heldout_one_in):
                pieces = [text[start : start + _HELDOUT_CHARACTERS] for start in range(0, len(text), _HELDOUT_CHARACTERS)][:_HELDOUT_PIECES]
                texts.setdefault(language, []).extend(pieces)
                sizes[language] = sizes.get(language, 0) + sum(len(piece.encode()) for piece in pieces)
    return {language: _heldout_rows(openings, config, tokenizer) for language, openings in sorted(texts.items())}


def _fitting(text: str, tokenizer: Tokenizer, length: int) -> Iterator[tuple[str, list[int]]]:
    """A text and its ids if a row of `length` + 1 holds them, else its halves. Only texts that have something to predict."""
    ids = tokenizer.encode(text, bos=True)
    if len(ids) > length + 1 and len(text) > 1:
        yield from _fitting(text[: len(text) // 2], tokenizer, length)
        yield from _fitting(text[len(text) // 2 :], tokenizer, length)
    elif 1 < len(ids) <= length + 1:
        yield text, ids


def _heldout_rows(openings: list[str], config: RecipeConfig, tokenizer: Tokenizer) -> HeldOut:
    length = config.pretrain.sequence_length
    kept = [piece for text in openings for piece in _fitting(text, tokenizer, length)]
    rows = pack((Document(ids=ids) for _, ids in kept), length, pad_id=tokenizer.pad_id)
    return HeldOut(rows=rows, num_bytes=sum(len(text.encode()) for text, _ in kept))
