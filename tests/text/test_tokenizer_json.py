"""tokenizer.json: what herd writes loads back and encodes alike in Hugging Face's library; what is damaged or foreign is refused."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from herd.base.errors import HerdError, NotFoundError, TokenizerError
from herd.text import tokenizer_json
from herd.text.byte_alphabet import encode_bytes
from herd.text.specials import SPECIAL_TOKENS
from herd.text.tokenizer import Tokenizer, load_tokenizer
from herd.text.tokenizer_json import read_tokenizer_json, to_tokenizer_json, write_tokenizer_json

Change = Callable[[dict[str, Any]], object]


@pytest.fixture(scope="module")
def content(small: Tokenizer) -> dict[str, Any]:
    return to_tokenizer_json(small)


def read(data: Any, folder: Path) -> Tokenizer:
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(data), encoding="utf-8")
    return read_tokenizer_json(path)


def refusal(data: Any, folder: Path) -> TokenizerError:
    with pytest.raises(TokenizerError) as caught:
        read(data, folder)
    assert caught.value.hint
    return caught.value


# What herd writes


@pytest.fixture(scope="module")
def hub(small: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> tokenizers.Tokenizer:
    folder = tmp_path_factory.mktemp("hub")
    write_tokenizer_json(small, folder)
    return tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))


@settings(deadline=None, max_examples=1000)
@given(
    text=st.text(max_size=20) | st.lists(st.sampled_from(["the herd", "läuft", " ", "\n", "12345", "🦙", "ลา"]), max_size=8).map("".join)
)
def test_hugging_faces_library_encodes_the_written_file_as_we_do(small: Tokenizer, hub: tokenizers.Tokenizer, text: str) -> None:
    ids = hub.encode(text, add_special_tokens=False).ids
    assert ids == small.encode(text, allowed_special="all")
    assert hub.decode(ids, skip_special_tokens=False) == text
    assert hub.encode(text).ids == [small.bos_id, *ids]


def test_hugging_faces_library_reads_special_tokens_where_we_allow_them(small: Tokenizer, hub: tokenizers.Tokenizer) -> None:
    text = "<|start_header_id|>user<|end_header_id|>\n\n<|eot_id|>"
    assert hub.encode(text, add_special_tokens=False).ids == small.encode(text, allowed_special="all")
    assert hub.get_vocab_size() == small.vocab_size


def test_a_pair_of_texts_begins_twice(small: Tokenizer, hub: tokenizers.Tokenizer) -> None:
    assert hub.encode("a", "b").ids == [small.bos_id, *small.encode("a"), small.bos_id, *small.encode("b")]


def test_the_companions_name_the_special_tokens(small: Tokenizer, tmp_path: Path) -> None:
    write_tokenizer_json(small, tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text(encoding="utf-8"))
    named = {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>", "pad_token": "<|finetune_right_pad_id|>"}
    assert json.loads((tmp_path / "special_tokens_map.json").read_text(encoding="utf-8")) == named
    assert {key: config[key] for key in named} == named
    assert {int(number): entry["content"] for number, entry in config["added_tokens_decoder"].items()} == dict(
        enumerate(SPECIAL_TOKENS, 400)
    )
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"


def test_what_is_written_reads_back(small: Tokenizer, content: dict[str, Any], tmp_path: Path) -> None:
    loaded = read(content, tmp_path)
    assert loaded.ranks == small.ranks
    assert loaded.special_tokens == small.special_tokens


# What others write


def test_merges_as_strings_are_read(small: Tokenizer, content: dict[str, Any], tmp_path: Path) -> None:
    old = copy.deepcopy(content)
    old["model"]["merges"] = [" ".join(pair) for pair in content["model"]["merges"]]
    assert read(old, tmp_path).ranks == small.ranks


def test_a_list_of_all_ways_to_make_each_token_is_read_as_in_llama_3s_own_file(
    small: Tokenizer, content: dict[str, Any], tmp_path: Path
) -> None:
    published = copy.deepcopy(content)
    tokens = sorted(small.ranks, key=lambda token: small.ranks[token])
    halves = [(token[:cut], token[cut:]) for token in tokens for cut in range(1, len(token))]
    pairs = [(left, right) for left, right in halves if left in small.ranks and right in small.ranks]
    published["model"]["merges"] = [[encode_bytes(left), encode_bytes(right)] for left, right in pairs]
    assert len(pairs) > len(content["model"]["merges"])
    assert read(published, tmp_path).ranks == small.ranks


def test_special_tokens_may_also_stand_in_the_vocabulary(small: Tokenizer, content: dict[str, Any], tmp_path: Path) -> None:
    doubled = copy.deepcopy(content)
    doubled["model"]["vocab"] |= small.special_tokens
    assert read(doubled, tmp_path).ranks == small.ranks


def test_a_vocabulary_that_hugging_faces_library_trained_is_read_and_encodes_alike(tmp_path: Path) -> None:
    theirs = tokenizers.Tokenizer(models.BPE())
    theirs.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(tokenizer_json.SPLIT_REGEX), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    theirs.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=280, initial_alphabet=alphabet, show_progress=False)
    text = "the herd and the cria are on the hill, and the other herd is there too. " * 3
    theirs.train_from_iterator([text], trainer)
    theirs.add_special_tokens(["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"])
    theirs.save(str(tmp_path / "tokenizer.json"))
    ours = load_tokenizer(tmp_path)
    assert ours.encode(text) == theirs.encode(text).ids
    assert (ours.bos_id, ours.eot_id) == (280, 282)


# What is refused


def put(*path: str | int, value: Any) -> Change:
    """The change that puts a value at a place in the file."""

    def change(data: Any) -> None:
        for key in path[:-1]:
            data = data[key]
        data[path[-1]] = value

    return change


def drop(*path: str | int) -> Change:
    """The change that takes the value at a place out."""

    def change(data: Any) -> None:
        for key in path[:-1]:
            data = data[key]
        del data[path[-1]]

    return change


SPLIT, BYTES = ("pre_tokenizer", "pretokenizers", 0), ("pre_tokenizer", "pretokenizers", 1)
FOREIGN: list[tuple[str, Change, str]] = [
    ("a word-piece model", put("model", "type", value="WordPiece"), "holds a 'WordPiece' model"),
    ("a unigram model", put("model", "type", value="Unigram"), "holds a 'Unigram' model"),
    ("a normaliser", put("normalizer", value={"type": "NFC"}), "normalises text before splitting it"),
    ("dropout", put("model", "dropout", value=0.1), "model.dropout is '0.1'"),
    ("a subword prefix", put("model", "continuing_subword_prefix", value="##"), "model.continuing_subword_prefix is '##'"),
    ("a word suffix", put("model", "end_of_word_suffix", value="</w>"), "model.end_of_word_suffix is '</w>'"),
    ("no pre-tokeniser", put("pre_tokenizer", value=None), "pre_tokenizer is NoneType, not an object"),
    ("SentencePiece's pre-tokeniser", put("pre_tokenizer", value={"type": "Metaspace"}), "does not split text by a regular expression"),
    ("GPT-2's pre-tokeniser", put("pre_tokenizer", value={"type": "ByteLevel"}), "does not split text by a regular expression"),
    ("a third step", lambda data: data["pre_tokenizer"]["pretokenizers"].append({"type": "Digits"}), "does not split text by a regular"),
    ("the steps swapped", lambda data: data["pre_tokenizer"]["pretokenizers"].reverse(), "does not split text by a regular expression"),
    ("a step that is no object", put(*SPLIT, value="Split"), "a pre-tokenizer is str, not an object"),
    ("a pattern that is no object", put(*SPLIT, "pattern", value="x"), "the split pattern is str, not an object"),
    ("another regex", put(*SPLIT, "pattern", value={"Regex": r"\p{N}+|\s+"}), r"splits text by '\\p{N}+|\\s+', not as Llama 3 does"),
    ("a split by text", put(*SPLIT, "pattern", value={"String": " "}), "splits text by 'None', not as Llama 3 does"),
    ("what is split is removed", put(*SPLIT, "behavior", value="Removed"), "drops or joins what its regular expression finds ('Removed')"),
    ("what is not found is split", put(*SPLIT, "invert", value=True), "drops or joins what its regular expression finds"),
    ("bytes split again", put(*BYTES, "use_regex", value=True), "splits its pieces again, or puts a space before them"),
    ("a space before", put(*BYTES, "add_prefix_space", value=True), "splits its pieces again, or puts a space before them"),
    ("defaults of bytes", put(*BYTES, value={"type": "ByteLevel"}), "splits its pieces again, or puts a space before them"),
    ("no merges", drop("model", "merges"), "model.merges is NoneType, not a list"),
    ("ids not in merge order", lambda data: data["model"]["merges"].reverse(), "comes after a token of a later id"),
    ("merges cut short", lambda data: data["model"]["merges"].pop(), "no merge makes 1 of the tokens"),
    ("an empty list of merges", put("model", "merges", value=[]), "no merge makes 144 of the tokens"),
]


@pytest.mark.parametrize(("change", "message"), [case[1:] for case in FOREIGN], ids=[case[0] for case in FOREIGN])
def test_a_tokenizer_of_another_kind_is_refused_with_what_differs(
    content: dict[str, Any], tmp_path: Path, change: Change, message: str
) -> None:
    changed = copy.deepcopy(content)
    change(changed)
    error = refusal(changed, tmp_path)
    assert message in error.message
    assert str(tmp_path / "tokenizer.json") in error.message
    assert error.hint == "herd reads byte-level BPE as Llama 3 uses it; is this another model's tokenizer?"


DAMAGED: list[tuple[str, Change, str]] = [
    ("no model", drop("model"), "model is NoneType, not an object"),
    ("a model that is a list", put("model", value=[]), "model is list, not an object"),
    ("no vocabulary", drop("model", "vocab"), "model.vocab is NoneType, not an object"),
    ("an id that is text", put("model", "vocab", "a", value="97"), "token 'a' has the id '97'"),
    ("an id that is a fraction", put("model", "vocab", "a", value=97.0), "token 'a' has the id 97.0"),
    ("an id that is a truth", put("model", "vocab", "a", value=True), "token 'a' has the id True"),
    ("an id below zero", put("model", "vocab", "a", value=-1), "token 'a' has the id -1"),
    ("an id far out", put("model", "vocab", "a", value=10**12), "id 98 where 97 was due"),
    ("an id twice", put("model", "vocab", "a", value=98), "id 98 where 97 was due"),
    ("a token outside the alphabet", put("model", "vocab", "日本", value=400), "'日本' holds '日', which is not in the byte alphabet"),
    ("an empty token", lambda data: data["model"]["vocab"].update({"": 400}), "holds a token of 0 bytes"),
    ("a token of 5,000 bytes", lambda data: data["model"]["vocab"].update({"x" * 5000: 400}), "holds a token of 5,000 bytes"),
    ("a byte missing", lambda data: data["model"].update(vocab={"a": 0}, merges=[]), "lacks 255 of the 256 single bytes"),
    ("a merge that makes nothing", lambda data: data["model"]["merges"].append(["Z", "Z"]), "merge ['Z', 'Z'] makes no token"),
    ("a merge of three", lambda data: data["model"]["merges"].append("a b c"), "merge a b c makes no token"),
    ("a merge that is a number", lambda data: data["model"]["merges"].append(5), "merge 5 makes no token"),
    ("a merge of numbers", lambda data: data["model"]["merges"].append([1, 2]), "merge [1, 2] makes no token"),
    ("special tokens that are an object", put("added_tokens", value={"a": 1}), "added_tokens is dict, not a list"),
    ("a special token that is text", put("added_tokens", value=["<|a|>"]), "an added token is str, not an object"),
    ("a special token without an id", drop("added_tokens", 0, "id"), "an added token without id or content"),
    ("a special token without a name", drop("added_tokens", 0, "content"), "an added token without id or content"),
    ("a special token with the id of another", put("added_tokens", 1, "id", value=400), "ids of special tokens overlap others"),
    ("a special token far out", put("added_tokens", 1, "id", value=10**9), "ids of special tokens overlap others or lie far out"),
    ("a special token below zero", put("added_tokens", 1, "id", value=-5), "ids of special tokens overlap others or lie far out"),
]


@pytest.mark.parametrize(("change", "message"), [case[1:] for case in DAMAGED], ids=[case[0] for case in DAMAGED])
def test_a_damaged_file_is_refused_with_what_is_wrong(content: dict[str, Any], tmp_path: Path, change: Change, message: str) -> None:
    changed = copy.deepcopy(content)
    change(changed)
    assert message in refusal(changed, tmp_path).message


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is not JSON"),
        (b'{"model": ', "is not JSON"),
        (b"\xff\xfe\x00", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"9" * 10_000, "is not JSON"),
        (b"[1, 2]", "holds list, not an object"),
        (b'"text"', "holds str, not an object"),
    ],
    ids=["empty", "cut short", "not text", "nested", "a long number", "a list", "a string"],
)
def test_a_file_that_is_no_json_object_is_refused(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(data)
    with pytest.raises(TokenizerError, match=message) as caught:
        read_tokenizer_json(path)
    assert caught.value.hint


def test_a_file_over_the_limit_is_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text("{}" + " " * 100, encoding="utf-8")
    monkeypatch.setattr(tokenizer_json, "MAX_FILE_BYTES", 100)
    with pytest.raises(TokenizerError, match=r"has 102 bytes \(limit 100\)") as caught:
        read_tokenizer_json(path)
    assert caught.value.hint == "a tokenizer.json has about 10 MB"


def test_a_file_that_is_not_there_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="cannot read"):
        read_tokenizer_json(tmp_path / "tokenizer.json")


def other_tokenizers() -> dict[str, tokenizers.Tokenizer]:
    """Tokenizers of other families, as Hugging Face's library builds them."""
    gpt2 = tokenizers.Tokenizer(
        models.BPE(vocab={char: number for number, char in enumerate(pre_tokenizers.ByteLevel.alphabet())}, merges=[])
    )
    gpt2.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    llama2 = tokenizers.Tokenizer(models.BPE(vocab={"<unk>": 0, "▁": 1, "a": 2}, merges=[], unk_token="<unk>", byte_fallback=True))
    llama2.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    bert = tokenizers.Tokenizer(models.WordPiece(vocab={"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    t5 = tokenizers.Tokenizer(models.Unigram([("<unk>", 0.0), ("a", -1.0)], 0))
    return {"gpt2": gpt2, "llama2": llama2, "bert": bert, "t5": t5}


@pytest.mark.parametrize("family", ["gpt2", "llama2", "bert", "t5"])
def test_tokenizers_of_other_families_are_refused(tmp_path: Path, family: str) -> None:
    other_tokenizers()[family].save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(TokenizerError) as caught:
        load_tokenizer(tmp_path)
    assert caught.value.hint


def places(value: Any, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """The paths to values in a file, of long lists and objects the first few."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    below = [place for key, item in list(items)[:8] for place in places(item, (*path, key))]
    return [path, *below] if path else below


JUNK = st.sampled_from([None, True, -1, 3, 10**30, 1.5, "", "text", "Ġ Ġ", [], {}, [[]], [None, None], {"id": 1}])


@settings(deadline=None, max_examples=300)
@given(data=st.data())
def test_any_value_of_another_kind_is_read_or_refused_by_name(
    content: dict[str, Any], tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    changed = copy.deepcopy(content)
    place = data.draw(st.sampled_from(places(content)))
    put(*place, value=data.draw(JUNK))(changed)
    try:
        tokenizer = read(changed, tmp_path_factory.getbasetemp())
    except HerdError as error:
        assert error.hint
    else:
        assert tokenizer.decode(tokenizer.encode("the herd")) == "the herd"
