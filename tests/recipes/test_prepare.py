"""The data of a run: held-out text stays out of everything that trains, and the cache serves what was asked for and nothing older."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from herd.base.config_io import apply_overrides
from herd.base.errors import HerdError, TokenizerError, UsageError
from herd.data.rows import Rows
from herd.recipes import prepare
from herd.recipes.config import RecipeConfig, TokenizerTraining
from herd.recipes.pack_pool import Packing, pack_at_once
from herd.recipes.prepare import prepare_heldout, prepare_rows, prepare_tokenizer
from herd.recipes.sources import is_heldout
from herd.text.bpe_train import train_bpe
from herd.text.tokenizer import Tokenizer
from herd.train.config import SourceConfig, StageConfig

ONE_IN = 4
TEXTS = {
    language: [f"{word} {number} {word} " + "ะa b c "[number % 3 :] * (number % 40) + f"{word}." for number in range(80)]
    for language, word in (("en", "llama"), ("de", "Hütte"), ("th", "ลามะ"))
}
KEPT = {language: [text for text in texts if not is_heldout(text, ONE_IN)] for language, texts in TEXTS.items()}
HELD = {language: [text for text in texts if is_heldout(text, ONE_IN)] for language, texts in TEXTS.items()}
SOURCES = (
    SourceConfig(name="both", path="both.jsonl", languages=("en", "de")),
    SourceConfig(name="thai", path="thai.jsonl", weight=2.0),
    SourceConfig(name="unused", path="not-there.jsonl", weight=0.0),
)
CHAT = SourceConfig(name="chat", path="chat.jsonl", kind="chat")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder: texts in three languages, and dialogues that are too long for a row every third time."""
    folder = tmp_path_factory.mktemp("data")
    for name, languages in (("both", ("en", "de")), ("thai", ("th",))):
        lines = [json.dumps({"text": text, "lang": language}) for language in languages for text in TEXTS[language]]
        (folder / f"{name}.jsonl").write_text("\n".join(lines))
    dialogues = [{"question": f"Question {number}?", "answer": "Yes. " * (90 if number % 3 == 0 else 3)} for number in range(30)]
    (folder / "chat.jsonl").write_text("\n".join(map(json.dumps, dialogues)))
    return folder


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_bpe([text for texts in TEXTS.values() for text in texts], 300)


@pytest.fixture(scope="module")
def config(quick: RecipeConfig) -> RecipeConfig:
    """A recipe over that folder."""
    stage = StageConfig(sources=SOURCES, num_steps=1, warmup_steps=0, sequence_length=32)
    return replace(
        apply_overrides(quick, ["model.vocab_size=556", "tokenizer.vocab_size=300"]),
        tokenizer=TokenizerTraining(vocab_size=300, sources=SOURCES[:2]),
        pretrain=stage,
        sft=replace(stage, sources=(CHAT,), answers_only=True, sequence_length=64),
        heldout_one_in=ONE_IN,
        heldout_bytes=100_000,
    )


def documents_of(rows: Rows, tokenizer: Tokenizer) -> Iterator[str]:
    """The text of every piece in the rows."""
    for tokens, documents in zip(rows.tokens, rows.documents, strict=True):
        for number in range(documents.max() + 1):
            yield tokenizer.decode(tokens[documents == number].tolist())


def rows_of(config: RecipeConfig, stage: StageConfig, data: Path, tokenizer: Tokenizer, cache: Path) -> dict[str, Rows]:
    return prepare_rows(stage, config, data, tokenizer, digest="a tokenizer's digest", cache=cache)


def test_rows_hold_every_text_that_is_not_held_out_and_no_other(
    config: RecipeConfig, data: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    assert all(HELD.values()) and all(KEPT.values())
    stage = replace(config.pretrain, sequence_length=512)
    rows = rows_of(config, stage, data, tokenizer, tmp_path)
    assert rows.keys() == {"both", "thai"}, "a source of weight 0 is not even read"
    for name, languages in (("both", ("en", "de")), ("thai", ("th",))):
        expected = [f"<|begin_of_text|>{text}<|end_of_text|>" for language in languages for text in KEPT[language]]
        assert sorted(documents_of(rows[name], tokenizer)) == sorted(expected)
        assert (rows[name].num_documents, rows[name].num_dropped) == (len(expected), 0)


def test_a_stage_of_short_rows_cuts_texts_and_leaves_long_dialogues_out_with_a_warning(
    config: RecipeConfig, data: Path, tokenizer: Tokenizer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    texts = rows_of(config, config.pretrain, data, tokenizer, tmp_path)
    whole = sum(len(tokenizer.encode(text)) + 2 for language in ("en", "de") for text in KEPT[language])
    assert int((texts["both"].documents >= 0).sum()) == whole
    logger = logging.getLogger("herd.recipes.prepare")
    logger.addHandler(caplog.handler)
    try:
        assert config.sft is not None
        chat = rows_of(config, config.sft, data, tokenizer, tmp_path)["chat"]
    finally:
        logger.removeHandler(caplog.handler)
    assert (chat.num_documents, chat.num_dropped) == (30, 10)
    assert "chat: 10 of 30 dialogues are over 65 tokens and were left out" in caplog.text
    assert sorted(documents_of(chat, tokenizer)) == sorted(
        f"<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nQuestion {number}?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nYes. Yes. Yes. <|eot_id|>"
        for number in range(30)
        if number % 3
    )
    counted = tokenizer.decode(chat.tokens[chat.counts].tolist())
    assert counted == "Yes. Yes. Yes. <|eot_id|>" * 20


def test_the_tokenizer_is_trained_on_no_held_out_text(
    config: RecipeConfig, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokenizer: Tokenizer
) -> None:
    seen: list[str] = []

    def train(texts: Iterable[str], vocab_size: int, *, progress: bool) -> Tokenizer:
        seen.extend(texts)
        assert vocab_size == 300
        return tokenizer

    monkeypatch.setattr(prepare, "train_bpe", train)
    prepare_tokenizer(config, data, tmp_path / "tokenizer")
    assert sorted(seen) == sorted(text for texts in KEPT.values() for text in texts)


def test_a_tokenizer_is_trained_once_and_then_loaded(config: RecipeConfig, data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "tokenizer"
    first = prepare_tokenizer(config, data, folder)
    assert first.vocab_size == config.model.vocab_size
    assert (folder / "tokenizer.model").exists() and (folder / "tokenizer.json").exists()
    again = prepare_tokenizer(config, None, folder)
    assert again.ranks == first.ranks


def test_a_tokenizer_that_the_text_cannot_fill_leaves_no_folder(config: RecipeConfig, data: Path, tmp_path: Path) -> None:
    greedy = replace(config, tokenizer=replace(config.tokenizer, vocab_size=50_000), model=replace(config.model, vocab_size=50_256))
    with pytest.raises(TokenizerError, match="of the 50,000 asked for"):
        prepare_tokenizer(greedy, data, tmp_path / "tokenizer")
    assert list(tmp_path.iterdir()) == []


def test_rows_are_read_from_the_cache_when_nothing_changed(config: RecipeConfig, data: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    first = rows_of(config, config.pretrain, data, tokenizer, tmp_path)
    files = sorted(tmp_path.iterdir())
    assert [path.name.split("-")[0] for path in files] == ["both", "thai"]
    # Without the data folder there is only the cache to read from.
    again = prepare_rows(config.pretrain, config, None, tokenizer, digest="a tokenizer's digest", cache=tmp_path)
    assert sorted(tmp_path.iterdir()) == files
    for name, rows in first.items():
        for part in ("tokens", "documents", "counts"):
            np.testing.assert_array_equal(getattr(rows, part), getattr(again[name], part))
        assert (rows.num_documents, rows.num_dropped) == (again[name].num_documents, again[name].num_dropped)


CHANGES = {
    "sequence length": (["pretrain.sequence_length=48"], 2),
    "answers only": (["pretrain.answers_only=true"], 2),
    "seed": (["seed=99"], 2),
    "share held out": (["heldout_one_in=5"], 2),
    "languages of one source": (["pretrain.sources.both.languages=en"], 1),
    "limit of one source": (["pretrain.sources.thai.max_bytes=500"], 1),
    "path of one source": (["pretrain.sources.thai.path=both.jsonl"], 1),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_config_is_never_served_older_rows(
    config: RecipeConfig, data: Path, tokenizer: Tokenizer, tmp_path: Path, change: str
) -> None:
    overrides, num_new = CHANGES[change]
    rows_of(config, config.pretrain, data, tokenizer, tmp_path)
    before = set(tmp_path.iterdir())
    changed = apply_overrides(config, overrides)
    rows = rows_of(changed, changed.pretrain, data, tokenizer, tmp_path)
    assert len(set(tmp_path.iterdir()) - before) == num_new
    fresh = rows_of(changed, changed.pretrain, data, tokenizer, tmp_path / "fresh")
    for name in fresh:
        np.testing.assert_array_equal(rows[name].tokens, fresh[name].tokens)


def test_another_tokenizer_is_never_served_older_rows(config: RecipeConfig, data: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    rows_of(config, config.pretrain, data, tokenizer, tmp_path)
    prepare_rows(config.pretrain, config, data, tokenizer, digest="another's digest", cache=tmp_path)
    assert len(list(tmp_path.iterdir())) == 4


def test_a_pack_that_fails_leaves_nothing_in_the_cache(config: RecipeConfig, tokenizer: Tokenizer, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "both.jsonl").write_text('{"text": "fine", "lang": "en"}\n{"text": ')
    with pytest.raises(Exception, match="line 2: not JSON"):
        rows_of(config, config.pretrain, folder, tokenizer, tmp_path / "cache")
    assert not (tmp_path / "cache").exists() or list((tmp_path / "cache").iterdir()) == []


def test_held_out_rows_are_the_held_out_texts_by_language_and_their_bytes(config: RecipeConfig, data: Path, tokenizer: Tokenizer) -> None:
    wide = replace(config, pretrain=replace(config.pretrain, sequence_length=512))
    heldout = prepare_heldout(wide, data, tokenizer)
    assert list(heldout) == ["de", "en", "th"]
    for language, held in heldout.items():
        assert sorted(documents_of(held.rows, tokenizer)) == sorted(f"<|begin_of_text|>{text}" for text in HELD[language])
        assert held.num_bytes == sum(len(text.encode()) for text in HELD[language])
        assert int(held.rows.counts.sum()) == sum(len(tokenizer.encode(text)) for text in HELD[language])


def test_held_out_texts_longer_than_a_row_are_halved_until_they_fit_and_none_is_lost(
    config: RecipeConfig, data: Path, tokenizer: Tokenizer
) -> None:
    heldout = prepare_heldout(config, data, tokenizer)
    for language, held in heldout.items():
        pieces = [piece.removeprefix("<|begin_of_text|>") for piece in documents_of(held.rows, tokenizer)]
        assert sorted("".join(pieces)) == sorted("".join(HELD[language]))
        assert held.num_bytes == sum(len(piece.encode()) for piece in pieces) == sum(len(text.encode()) for text in HELD[language])
        assert all(piece in "\n".join(HELD[language]) for piece in pieces)
        assert held.rows.tokens.shape[1] == 33 and held.rows.num_dropped == 0


def test_only_openings_of_long_texts_and_no_more_than_asked_for_are_measured(
    tokenizer: Tokenizer, config: RecipeConfig, tmp_path: Path
) -> None:
    long = [text for number in range(40) if is_heldout(text := f"{number} " + "the llama " * 900, ONE_IN)]
    assert len(long) >= 3
    (tmp_path / "both.jsonl").write_text("\n".join(json.dumps({"text": text, "lang": "en"}) for text in long))
    (tmp_path / "thai.jsonl").write_text('{"text": "ลามะ", "lang": "th"}')
    for limit, num_documents in ((1, 1), (4800, 1), (4801, 2), (10**6, len(long))):
        heldout = prepare_heldout(replace(config, heldout_bytes=limit), tmp_path, tokenizer)
        assert heldout["en"].num_bytes == 4800 * num_documents
    assert prepare_heldout(replace(config, heldout_bytes=0), tmp_path, tokenizer) == {}


def test_dialogues_and_sources_of_weight_zero_are_not_measured(config: RecipeConfig, data: Path, tokenizer: Tokenizer) -> None:
    chat_only = replace(config, pretrain=replace(config.pretrain, sources=(CHAT, replace(SOURCES[0], weight=0.0))))
    assert prepare_heldout(chat_only, data, tokenizer) == {}


def test_a_text_without_a_language_counts_as_english(config: RecipeConfig, tokenizer: Tokenizer, tmp_path: Path) -> None:
    text = next(text for text in TEXTS["en"] if is_heldout(text, ONE_IN))
    (tmp_path / "texts.jsonl").write_text(json.dumps({"text": text}))
    source = SourceConfig(name="texts", path="texts.jsonl")
    heldout = prepare_heldout(replace(config, pretrain=replace(config.pretrain, sources=(source,))), tmp_path, tokenizer)
    assert list(heldout) == ["en"]


def packing_of(config: RecipeConfig, data: Path, tokenizer: Tokenizer, folder: Path) -> Packing:
    tokenizer.save(folder / "tokenizer")
    (folder / "data").mkdir()
    return Packing(
        stage=config.pretrain,
        config=config,
        data=data,
        tokenizer=folder / "tokenizer",
        digest="a tokenizer's digest",
        cache=folder / "data",
    )


def test_two_processes_pack_what_one_does(config: RecipeConfig, data: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    rows_of(config, config.pretrain, data, tokenizer, tmp_path / "one")
    packing = packing_of(config, data, tokenizer, tmp_path)
    pack_at_once(packing, workers=1)
    assert list(packing.cache.iterdir()) == [], "one process packs as it reads"
    pack_at_once(packing, workers=2)
    files = sorted(packing.cache.iterdir())
    assert [path.name for path in files] == sorted(path.name for path in (tmp_path / "one").iterdir())
    for path in files:
        with np.load(path) as ours, np.load(tmp_path / "one" / path.name) as theirs:
            assert all(np.array_equal(ours[name], theirs[name]) for name in theirs.files)
    pack_at_once(replace(packing, tokenizer=tmp_path / "none"), workers=2)  # nothing is missing, so nothing is begun


def test_what_a_packing_process_finds_wrong_is_told_whole(config: RecipeConfig, data: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    packing = packing_of(config, data, tokenizer, tmp_path)
    with pytest.raises(UsageError, match="0 processes cannot pack rows"):
        pack_at_once(packing, workers=0)
    with pytest.raises(HerdError) as caught:
        pack_at_once(replace(packing, data=None), workers=2)
    assert "from a data folder, and none was given" in caught.value.message and caught.value.hint == "pass --data FOLDER"
