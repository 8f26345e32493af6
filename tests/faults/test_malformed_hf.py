"""Damaged and hostile safetensors folders: each gives a named error with a way out, and leaves no file behind."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from herd.base.errors import CheckpointError, ConfigError, HerdError, NotFoundError
from herd.checkpoint.convert import convert
from herd.checkpoint.hf import write_hf
from herd.checkpoint.load import ModelSource, load_model, save_model
from herd.model.config import ModelConfig
from herd.model.init import initialise
from herd.model.transformer import Transformer

CONFIG = ModelConfig(
    vocab_size=32,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=8,
)
NORM = "model.norm.weight"
INDEX = "model.safetensors.index.json"
Damage = Callable[[Path], None]


def header_of(folder: Path) -> tuple[dict[str, Any], bytes]:
    content = (folder / "model.safetensors").read_bytes()
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def put(folder: Path, header: bytes, data: bytes, length: int | None = None) -> None:
    prefix = (len(header) if length is None else length).to_bytes(8, "little")
    (folder / "model.safetensors").write_bytes(prefix + header + data)


def with_header(change: Callable[[dict[str, Any]], object]) -> Damage:
    def damage(folder: Path) -> None:
        header, data = header_of(folder)
        change(header)
        put(folder, json.dumps(header).encode(), data)

    return damage


def with_norm(**fields: Any) -> Damage:
    return with_header(lambda header: header[NORM].update(fields))


def with_tensors(**tensors: torch.Tensor | None) -> Damage:
    def damage(folder: Path) -> None:
        table: dict[str, Any] = {**safetensors.torch.load_file(folder / "model.safetensors"), **tensors}
        safetensors.torch.save_file({name: tensor for name, tensor in table.items() if tensor is not None}, folder / "model.safetensors")

    return damage


def with_config(**fields: Any) -> Damage:
    def damage(folder: Path) -> None:
        (folder / "config.json").write_text(json.dumps(json.loads((folder / "config.json").read_text()) | fields))

    return damage


def with_bytes(name: str, content: bytes) -> Damage:
    def damage(folder: Path) -> None:
        (folder / name).write_bytes(content)

    return damage


def cut(folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[:-4])


def extend(folder: Path) -> None:
    with open(folder / "model.safetensors", "ab") as file:
        file.write(b"more")


def huge_header(folder: Path) -> None:
    put(folder, b"{}", b"", length=2**63)


def header_over_the_file(folder: Path) -> None:
    put(folder, b"{}", b"", length=3)


def duplicate_key(folder: Path) -> None:
    header, data = header_of(folder)
    text = json.dumps(header)
    put(folder, (text[:-1] + f', "{NORM}": {json.dumps(header[NORM])}}}').encode(), data)


def overlap(header: dict[str, Any]) -> None:
    begin, end = header[NORM]["data_offsets"]
    header[NORM]["data_offsets"] = [begin - 4, end - 4]


def hole(header: dict[str, Any]) -> None:
    del header[NORM]


def index_with(change: Callable[[dict[str, Any]], object]) -> Damage:
    def damage(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        with torch.device("meta"):
            model = Transformer(CONFIG)
        write_hf(ModelSource(initialise(model, seed=8)), folder, shard_bytes=5000)
        index = json.loads((folder / INDEX).read_text())
        change(index)
        (folder / INDEX).write_text(json.dumps(index))

    return damage


def remove_a_shard(folder: Path) -> None:
    index_with(lambda index: None)(folder)
    sorted(folder.glob("model-*.safetensors"))[0].unlink()


def stored_twice(folder: Path) -> None:
    index_with(lambda index: None)(folder)
    first, second = sorted(folder.glob("model-*.safetensors"))[:2]
    both = {**safetensors.torch.load_file(first), **safetensors.torch.load_file(second)}
    safetensors.torch.save_file(both, second)


def pickled_weights(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def orphaned_shards(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")


CASES: list[tuple[str, Damage, type[HerdError], str]] = [
    ("an empty file", with_bytes("model.safetensors", b""), CheckpointError, "too few"),
    ("a file of text", with_bytes("model.safetensors", b"version https://git-lfs.github.com/spec/v1\n" * 3), CheckpointError, "header"),
    ("a huge header", huge_header, CheckpointError, "9,223,372,036,854,775,808"),
    ("a header over the file", header_over_the_file, CheckpointError, "at most 2"),
    ("a header that is no JSON", lambda folder: put(folder, b"{]", b""), CheckpointError, "not valid JSON"),
    ("a header that is no text", lambda folder: put(folder, b"\xff\xfe", b""), CheckpointError, "not valid JSON"),
    ("a header that is a list", lambda folder: put(folder, b"[]", b""), CheckpointError, "list"),
    ("a header nested deeply", lambda folder: put(folder, b'{"a":' * 100_000, b""), CheckpointError, "not valid JSON|too deeply"),
    ("a key given twice", duplicate_key, CheckpointError, "twice"),
    ("a file cut short", cut, CheckpointError, "data_offsets"),
    ("bytes after the end", extend, CheckpointError, "4 bytes at its end"),
    ("overlapping tensors", with_header(overlap), CheckpointError, "overlaps"),
    ("a hole between tensors", with_header(hole), CheckpointError, "belong to no tensor"),
    ("an unknown dtype", with_norm(dtype="F12"), CheckpointError, "F12"),
    ("a dtype that is no text", with_norm(dtype=[]), CheckpointError, "dtype"),
    ("a negative size", with_norm(shape=[-16]), CheckpointError, "shape"),
    ("a size that overflows", with_norm(shape=[2**62, 2**62]), CheckpointError, "needs"),
    ("a size beyond integers", with_norm(shape=[2**70]), CheckpointError, "shape"),
    ("a size that is true", with_norm(shape=[True]), CheckpointError, "shape"),
    ("too many dimensions", with_norm(shape=[1] * 1000), CheckpointError, "shape"),
    ("a shape of another size", with_norm(shape=[17]), CheckpointError, "needs 68 bytes"),
    ("offsets the wrong way round", with_norm(data_offsets=[64, 0]), CheckpointError, "data_offsets"),
    ("offsets beyond the file", with_norm(data_offsets=[2**40, 2**40 + 64]), CheckpointError, "data_offsets"),
    ("negative offsets", with_norm(data_offsets=[-64, 0]), CheckpointError, "data_offsets"),
    ("a field too many", with_norm(code="import os"), CheckpointError, "nothing else"),
    ("metadata of numbers", with_header(lambda header: header.update(__metadata__={"a": 1})), CheckpointError, "__metadata__"),
    ("a missing tensor", with_tensors(**{NORM: None}), CheckpointError, NORM),
    ("a misnamed tensor", with_tensors(**{NORM: None, "model.nrom.weight": torch.ones(16)}), CheckpointError, "model.norm.weight"),
    ("an unexpected tensor", with_tensors(**{"model.layers.0.self_attn.q_proj.bias": torch.ones(16)}), CheckpointError, "q_proj.bias"),
    ("a mis-shaped tensor", with_tensors(**{NORM: torch.ones(17)}), CheckpointError, r"\[17\]"),
    ("a tensor of integers", with_tensors(**{NORM: torch.ones(16, dtype=torch.int64)}), CheckpointError, "I64"),
    ("an index without a map", index_with(lambda index: index.pop("weight_map")), CheckpointError, "weight_map"),
    ("an index out of the folder", index_with(lambda i: i["weight_map"].update({NORM: "../x.safetensors"})), CheckpointError, r"\.\./x"),
    ("an index to the root", index_with(lambda i: i["weight_map"].update({NORM: "/etc/x.safetensors"})), CheckpointError, "/etc/x"),
    (
        "an index to another kind",
        index_with(lambda i: i["weight_map"].update({NORM: "pytorch_model.bin"})),
        CheckpointError,
        "pytorch_model",
    ),
    ("an index of numbers", index_with(lambda index: index["weight_map"].update({NORM: 7})), CheckpointError, "7"),
    ("an index of absent tensors", index_with(lambda i: i["weight_map"].update({"x": i["weight_map"][NORM]})), CheckpointError, "x"),
    ("an index that forgets one", index_with(lambda index: index["weight_map"].pop(NORM)), CheckpointError, NORM),
    ("an index with a missing shard", remove_a_shard, CheckpointError, "not there"),
    ("a tensor stored twice", stored_twice, CheckpointError, "twice"),
    ("a config that is no JSON", with_bytes("config.json", b"{"), CheckpointError, "config.json"),
    ("a config with NaN", with_bytes("config.json", b'{"rope_theta": NaN}'), CheckpointError, "NaN"),
    ("a config that is empty", with_bytes("config.json", b"{}"), ConfigError, "architecture"),
    ("a config of a billion layers", with_config(num_hidden_layers=10**9), CheckpointError, "1000000000"),
    ("a config of huge sizes", with_config(hidden_size=2**50), CheckpointError, "shape"),
    ("a config with uneven heads", with_config(num_key_value_heads=3), ConfigError, "3 KV heads"),
    ("a config of another model", with_config(model_type="gpt2"), ConfigError, "gpt2"),
    ("a quantised model", with_config(quantization_config={"quant_method": "aqlm"}), CheckpointError, "aqlm"),
    ("pickled weights", pickled_weights, NotFoundError, "no weights"),
    ("shards without an index", orphaned_shards, NotFoundError, "no weights"),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tiny sound model."""
    with torch.device("meta"):
        model = Transformer(CONFIG)
    save_model(initialise(model, seed=8), tmp_path / "model")
    return tmp_path / "model"


def test_the_undamaged_folder_loads(folder: Path) -> None:
    load_model(folder)
    index_with(lambda index: None)(folder)
    load_model(folder)


@pytest.mark.parametrize(("damage", "error", "fragment"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_damage_is_refused_by_name(folder: Path, tmp_path: Path, damage: Damage, error: type[HerdError], fragment: str) -> None:
    damage(folder)
    before = sorted(path for path in tmp_path.rglob("*"))
    for attempt in (lambda: load_model(folder), lambda: convert(folder, tmp_path / "out", to="meta")):
        with pytest.raises(error, match=fragment) as caught:
            attempt()
        assert caught.value.hint
    assert sorted(path for path in tmp_path.rglob("*")) == before
