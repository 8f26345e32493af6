"""Hostile and damaged GGUF files: each is refused with a named error and a hint, quickly, and without the memory that it declares."""

from __future__ import annotations

import struct
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from herd.base.errors import CheckpointError, ConfigError, HerdError, TokenizerError
from herd.checkpoint.gguf_format import (
    KINDS,
    Kind,
    Metadata,
    StoredTensor,
    ValueType,
    array,
    f32,
    flag,
    pack_header,
    pack_string,
    padded,
    text,
    u32,
)
from herd.checkpoint.gguf_llama import gguf_name, metadata_from_config
from herd.checkpoint.gguf_read import GgufSource
from herd.checkpoint.gguf_tokenizer import gguf_tokenizer, tokenizer_metadata
from herd.model.config import ModelConfig, RopeScaling
from herd.text.tokenizer import Tokenizer

HUGE = 2**60
MAX_PEAK_BYTES = 4_000_000
MAX_SECONDS = 3.0

TINY = ModelConfig(
    vocab_size=520, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1, head_dim=16
)


def counts(num_tensors: int, num_keys: int) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, num_tensors, num_keys)


def key(name: str, kind: int, value: bytes) -> bytes:
    return pack_string(name) + struct.pack("<I", kind) + value


def tensor(name: str, dims: list[int], code: int, offset: int) -> bytes:
    return pack_string(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, code, offset)


def one_tensor(dims: list[int], code: int = 0, offset: int = 0, data: bytes = bytes(4096)) -> bytes:
    head = counts(1, 0) + tensor("token_embd.weight", dims, code, offset)
    return head.ljust(padded(len(head), 32), b"\0") + data


def nested_arrays(depth: int, count: int = 1) -> bytes:
    return struct.pack("<IQ", ValueType.ARRAY, count) * depth + struct.pack("<IQ", ValueType.UINT8, 0)


MALFORMED = {
    "an empty file": b"",
    "a few bytes": b"GGUF\x03",
    "another format": b"PK\x03\x04" + bytes(100),
    "version 1": b"GGUF" + struct.pack("<IQQ", 1, 0, 0) + bytes(64),
    "version 99": b"GGUF" + struct.pack("<IQQ", 99, 0, 0) + bytes(64),
    "big-endian": b"GGUF" + struct.pack(">IQQ", 3, 0, 0) + bytes(64),
    "2**60 tensors": counts(HUGE, 0) + bytes(64),
    "2**64 - 1 keys": counts(0, 2**64 - 1) + bytes(64),
    "no keys at all": counts(0, 0),
    "a key of 2**60 bytes": counts(0, 1) + struct.pack("<Q", HUGE) + bytes(64),
    "a key that is not UTF-8": counts(0, 1) + struct.pack("<Q", 2) + b"\xff\xfe" + struct.pack("<IB", 0, 1),
    "a string of 2**60 bytes": counts(0, 1) + key("a", 8, struct.pack("<Q", HUGE)) + bytes(64),
    "a string one byte over the end": counts(0, 1) + key("a", 8, struct.pack("<Q", 9) + bytes(8)),
    "an array of 2**60 numbers": counts(0, 1) + key("a", 9, struct.pack("<IQ", 6, HUGE)) + bytes(64),
    "an array of 2**24 strings": counts(0, 1) + key("a", 9, struct.pack("<IQ", 8, 2**24)) + bytes(64),
    "an array of strings that lie": counts(0, 1) + key("a", 9, struct.pack("<IQQ", 8, 2, HUGE)) + bytes(64),
    "an array of strings that are not UTF-8": counts(0, 1) + key("a", 9, struct.pack("<IQQ", 8, 1, 2) + b"\xc3\x28"),
    "an array of strings cut in a length": counts(0, 1) + key("a", 9, struct.pack("<IQ", 8, 3) + bytes(23)) + b"",
    "arrays nested 1000 deep": counts(0, 1) + key("a", 9, nested_arrays(1000)),
    "arrays nested and multiplied": counts(0, 1) + key("a", 9, nested_arrays(3, 2**23)),
    "a value type that does not exist": counts(0, 1) + key("a", 13, bytes(64)),
    "an item type that does not exist": counts(0, 1) + key("a", 9, struct.pack("<IQ", 77, 1)) + bytes(64),
    "a bool of 2": counts(0, 1) + key("a", 7, b"\x02") + bytes(64),
    "a key that is there twice": counts(0, 2) + key("a", 0, b"\x01") * 2 + bytes(64),
    "an alignment of zero": counts(0, 1) + key("general.alignment", 4, struct.pack("<I", 0)) + bytes(64),
    "an alignment of 33": counts(0, 1) + key("general.alignment", 4, struct.pack("<I", 33)) + bytes(64),
    "an alignment of 2**31": counts(0, 1) + key("general.alignment", 4, struct.pack("<I", 2**31)) + bytes(64),
    "an alignment that is text": counts(0, 1) + key("general.alignment", 8, pack_string("32")) + bytes(64),
    "a tensor of 2**60 values": one_tensor([HUGE]),
    "a tensor whose size overflows 64 bits": one_tensor([2**40, 2**40]),
    "a tensor whose size overflows to a little": one_tensor([2**32, 2**32, 2**32, 2]),
    "a tensor without dimensions": one_tensor([]),
    "a tensor of five dimensions": one_tensor([1, 1, 1, 1, 1]),
    "a tensor of 2**32 - 1 dimensions": counts(1, 0) + pack_string("t") + struct.pack("<I", 2**32 - 1) + bytes(64),
    "a dimension of zero": one_tensor([32, 0]),
    "a kind that does not exist": one_tensor([32], code=5),
    "a kind that herd does not read": one_tensor([256], code=10),
    "a row that is no whole block": one_tensor([33], code=8),
    "an offset beyond the end": one_tensor([32], offset=4096),
    "an offset that overflows": one_tensor([32], offset=2**64 - 32),
    "an offset that is not aligned": one_tensor([32], offset=8),
    "data that is cut short": one_tensor([1025]),
    "a tensor name of 1000 bytes": counts(1, 0) + tensor("t" * 1000, [1], 0, 0) + bytes(64),
    "the same tensor twice": counts(2, 0) + tensor("a", [8], 0, 0) * 2 + bytes(256),
    "tensors that overlap": counts(2, 0) + tensor("a", [16], 0, 0) + tensor("b", [8], 0, 32) + bytes(256),
}


@contextmanager
def little_memory_and_time() -> Iterator[None]:
    tracemalloc.start()
    started = time.perf_counter()
    try:
        yield
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak_bytes < MAX_PEAK_BYTES
    assert time.perf_counter() - started < MAX_SECONDS


def model_tensors(config: ModelConfig, kind: Kind = KINDS["F32"]) -> list[StoredTensor]:
    tensors: list[StoredTensor] = []
    offset = 0
    for name, shape in config.parameter_shapes().items():
        tensors.append(StoredTensor(name=gguf_name(name), shape=shape, kind=kind, offset=offset))
        offset += padded(tensors[-1].size_bytes, 32)
    return tensors


def small_tokenizer() -> Tokenizer:
    return Tokenizer({bytes([byte]): byte for byte in range(256)} | {b" t": 256, b"he": 257, b" the": 258})


def model_file(metadata: Metadata, tensors: list[StoredTensor]) -> bytes:
    end = max((tensor.offset + padded(tensor.size_bytes, 32) for tensor in tensors), default=0)
    return pack_header(metadata, tensors) + bytes(end)


def model_metadata(config: ModelConfig = TINY) -> Metadata:
    return metadata_from_config(config, name="tiny", file_type=0, alignment=32) | tokenizer_metadata(small_tokenizer(), config.vocab_size)


@pytest.mark.parametrize("case", list(MALFORMED))
def test_a_malformed_file_is_refused_with_a_hint(tmp_path: Path, case: str) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(MALFORMED[case])
    with little_memory_and_time(), pytest.raises(HerdError) as caught:
        GgufSource(path)
    assert isinstance(caught.value, (CheckpointError, ConfigError))
    assert caught.value.hint
    assert str(path) in caught.value.message


def test_the_file_that_the_next_tests_spoil_is_sound(tmp_path: Path) -> None:
    (tmp_path / "good.gguf").write_bytes(model_file(model_metadata(), model_tensors(TINY)))
    with GgufSource(tmp_path / "good.gguf") as source:
        assert source.config == TINY
        assert torch.equal(source.read("model.norm.weight"), torch.zeros(32))
    assert gguf_tokenizer(tmp_path / "good.gguf").ranks == small_tokenizer().ranks


@pytest.mark.parametrize(
    "name",
    [
        "block_count",
        "context_length",
        "embedding_length",
        "feed_forward_length",
        "attention.head_count",
        "attention.key_length",
        "vocab_size",
    ],
)
@pytest.mark.parametrize("value", [0, 2**31, 2**32 - 1])
def test_a_config_of_impossible_size_is_refused(tmp_path: Path, name: str, value: int) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(model_file(model_metadata() | {f"llama.{name}": u32(value)}, model_tensors(TINY)))
    if name == "context_length" and value:
        GgufSource(path).close()
        return
    with little_memory_and_time(), pytest.raises((CheckpointError, ConfigError)) as caught:
        GgufSource(path)
    assert caught.value.hint


def test_a_model_that_lacks_a_tensor_or_has_one_too_many_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(model_file(model_metadata(), model_tensors(TINY)[1:]))
    with pytest.raises(CheckpointError, match=r"lacks tensor 'token_embd\.weight'"):
        GgufSource(path)
    tensors = model_tensors(TINY)
    end = tensors[-1].offset + padded(tensors[-1].size_bytes, 32)
    bias = StoredTensor(name="blk.0.attn_q.bias", shape=(32,), kind=KINDS["F32"], offset=end)
    path.write_bytes(model_file(model_metadata(), [*tensors, bias]))
    with pytest.raises(CheckpointError, match=r"does not have, the first is 'blk\.0\.attn_q\.bias'"):
        GgufSource(path)


def test_scaling_keys_without_their_factors_are_refused(tmp_path: Path) -> None:
    config = ModelConfig(**{**{name: getattr(TINY, name) for name in TINY.__slots__}, "rope_scaling": RopeScaling()})
    path = tmp_path / "bad.gguf"
    path.write_bytes(model_file(model_metadata(config), model_tensors(config)))
    with pytest.raises(ConfigError, match=r"herd\.rope\.scaling \(8\.0, 1\.0, 4\.0\) is not what rope_freqs\.weight holds") as caught:
        GgufSource(path)
    assert caught.value.hint


@pytest.mark.parametrize("shape", [(7,), (8, 1), (9,)])
def test_rope_factors_of_another_shape_are_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    tensors = model_tensors(TINY)
    end = tensors[-1].offset + padded(tensors[-1].size_bytes, 32)
    path = tmp_path / "bad.gguf"
    factors = StoredTensor(name="rope_freqs.weight", shape=shape, kind=KINDS["F32"], offset=end)
    path.write_bytes(model_file(model_metadata(), [*tensors, factors]))
    with pytest.raises(ConfigError, match=r"rope_freqs\.weight is F32") as caught:
        GgufSource(path)
    assert caught.value.hint


TOKENS = tokenizer_metadata(small_tokenizer(), TINY.vocab_size)["tokenizer.ggml.tokens"].value.values
TYPES = tokenizer_metadata(small_tokenizer(), TINY.vocab_size)["tokenizer.ggml.token_type"].value.values

BAD_TOKENIZERS: dict[str, Metadata] = {
    "another model": {"model": text("llama")},
    "a model that is a number": {"model": u32(3)},
    "another splitting": {"pre": text("qwen2")},
    "tokens that are numbers": {"tokens": array(ValueType.INT32, [1, 2])},
    "tokens that are one string": {"tokens": text("abc")},
    "types that are floats": {"token_type": array(ValueType.FLOAT32, [1.0])},
    "fewer types than tokens": {"token_type": array(ValueType.INT32, TYPES[:-1])},
    "a token twice": {"tokens": array(ValueType.STRING, [*TOKENS[:258], TOKENS[257], *TOKENS[259:]])},
    "an empty token": {"tokens": array(ValueType.STRING, [*TOKENS[:258], "", *TOKENS[259:]])},
    "a token outside the alphabet": {"tokens": array(ValueType.STRING, [*TOKENS[:258], "a b", *TOKENS[259:]])},
    "a byte that is missing": {"tokens": array(ValueType.STRING, ["Ġthey", *TOKENS[1:]]), "merges": array(ValueType.STRING, [])},
    "a special token twice": {"tokens": array(ValueType.STRING, [*TOKENS[:300], TOKENS[299], *TOKENS[301:]])},
    "an ordinary token among special ones": {"token_type": array(ValueType.INT32, [*TYPES[:300], 1, *TYPES[301:]])},
    "a token type that does not exist": {"token_type": array(ValueType.INT32, [*TYPES[:300], -7, *TYPES[301:]])},
    "merges out of order": {"merges": array(ValueType.STRING, ["h e", "Ġ t", "Ġt he"])},
    "a merge that makes no token": {"merges": array(ValueType.STRING, ["Ġ t", "h x"])},
    "a merge of what is no token": {"merges": array(ValueType.STRING, ["Ġ t", "h e", "Ġth e"])},
    "a merge without a space": {"merges": array(ValueType.STRING, ["Ġt"])},
    "merges that are flags": {"merges": array(ValueType.BOOL, [True])},
    "another first token": {"bos_token_id": u32(3)},
    "a first token that is text": {"bos_token_id": text("<s>")},
}


@pytest.mark.parametrize("case", list(BAD_TOKENIZERS))
def test_a_malformed_tokenizer_is_refused_with_a_hint(tmp_path: Path, case: str) -> None:
    changed = {f"tokenizer.ggml.{name}": typed for name, typed in BAD_TOKENIZERS[case].items()}
    (tmp_path / "bad.gguf").write_bytes(pack_header(model_metadata() | changed, []))
    with pytest.raises(TokenizerError) as caught:
        gguf_tokenizer(tmp_path / "bad.gguf")
    assert caught.value.hint


@pytest.mark.parametrize("name", ["model", "pre", "tokens", "token_type", "merges"])
def test_a_tokenizer_without_one_of_its_keys_is_refused(tmp_path: Path, name: str) -> None:
    metadata = model_metadata()
    del metadata[f"tokenizer.ggml.{name}"]
    (tmp_path / "bad.gguf").write_bytes(pack_header(metadata, []))
    with pytest.raises(TokenizerError, match=rf"tokenizer\.ggml\.{name}") as caught:
        gguf_tokenizer(tmp_path / "bad.gguf")
    assert caught.value.hint


SOUND = model_file(
    metadata_from_config(TINY, name="tiny", file_type=0, alignment=32)
    | {"x": array(ValueType.STRING, ["a", "b"]), "y": flag(True), "z": f32(1.0)},
    model_tensors(TINY, KINDS["Q8_0"]),
)
HEADER_BYTES = SOUND.rindex(b"output.weight") + 64


@given(cut=st.integers(0, len(SOUND) - 32))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_file_cut_anywhere_is_refused(tmp_path: Path, cut: int) -> None:
    (tmp_path / "cut.gguf").write_bytes(SOUND[:cut])
    with pytest.raises(HerdError) as caught:
        GgufSource(tmp_path / "cut.gguf")
    assert caught.value.hint


@given(changes=st.lists(st.tuples(st.integers(0, HEADER_BYTES), st.integers(0, 255)), min_size=1, max_size=3))
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_file_with_changed_bytes_reads_or_is_a_herd_error(tmp_path: Path, changes: list[tuple[int, int]]) -> None:
    data = bytearray(SOUND)
    for at, byte in changes:
        data[at] = byte
    (tmp_path / "changed.gguf").write_bytes(data)
    try:
        with GgufSource(tmp_path / "changed.gguf") as source:
            for name in source.tensors:
                source.read(name)
    except HerdError as error:
        assert error.hint
