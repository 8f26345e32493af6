"""Damaged and hostile Meta folders: each gives a named error with a way out, runs nothing, and leaves no file behind."""

from __future__ import annotations

import io
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from herd.base.errors import CheckpointError, ConfigError, HerdError, NotFoundError
from herd.checkpoint.convert import convert
from herd.checkpoint.load import ModelSource, load_model
from herd.checkpoint.meta import write_meta
from herd.model.config import ModelConfig
from herd.model.init import initialise
from herd.model.transformer import Transformer

CONFIG = ModelConfig(
    vocab_size=32,
    hidden_size=16,
    intermediate_size=32,
    num_hidden_layers=3,
    num_attention_heads=2,
    num_key_value_heads=2,
    head_dim=8,
)
SHARD = "consolidated.01.pth"
NORM = "norm.weight"
Damage = Callable[[Path], object]


class Bomb:
    """Unpickled as code, it would write a file beside the checkpoint."""

    def __init__(self, target: str) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.target}",)


def with_params(**fields: Any) -> Damage:
    def damage(folder: Path) -> None:
        (folder / "params.json").write_text(json.dumps(json.loads((folder / "params.json").read_text()) | fields))

    return damage


def with_bytes(name: str, content: bytes) -> Damage:
    def damage(folder: Path) -> None:
        (folder / name).write_bytes(content)

    return damage


def with_shard(change: Callable[[dict[str, Any]], object]) -> Damage:
    def damage(folder: Path) -> None:
        shard = {key: tensor.clone() for key, tensor in torch.load(folder / SHARD, weights_only=True).items()}
        change(shard)
        torch.save(shard, folder / SHARD)

    return damage


def with_scales(change: Callable[[dict[str, Any]], object]) -> Damage:
    def damage(folder: Path) -> None:
        scales = torch.load(folder / "fp8_scales_1.pt", weights_only=True)
        change(scales)
        torch.save(scales, folder / "fp8_scales_1.pt")

    return damage


def remove(name: str) -> Damage:
    def damage(folder: Path) -> None:
        (folder / name).unlink()

    return damage


def cut(keep: float) -> Damage:
    def damage(folder: Path) -> None:
        content = (folder / SHARD).read_bytes()
        (folder / SHARD).write_bytes(content[: int(len(content) * keep)])

    return damage


def bomb(folder: Path) -> None:
    torch.save({NORM: Bomb(str(folder.parent / "bang"))}, folder / SHARD)


def plain_pickle_bomb(folder: Path) -> None:
    (folder / SHARD).write_bytes(pickle.dumps(Bomb(str(folder.parent / "bang"))))


def legacy_file(folder: Path) -> None:
    shard = torch.load(folder / SHARD, weights_only=True)
    torch.save(shard, folder / SHARD, _use_new_zipfile_serialization=False)


def repacked(change: Callable[[zipfile.ZipInfo, bytes], bytes], compression: int = zipfile.ZIP_STORED) -> Damage:
    """Write the archive anew with changed records."""

    def damage(folder: Path) -> None:
        buffer = io.BytesIO()
        with zipfile.ZipFile(folder / SHARD) as old, zipfile.ZipFile(buffer, "w", compression) as new:
            for record in old.infolist():
                new.writestr(record.filename, change(record, old.read(record.filename)))
        (folder / SHARD).write_bytes(buffer.getvalue())

    return damage


def shorter_data(record: zipfile.ZipInfo, content: bytes) -> bytes:
    return content[:4] if "/data/" in record.filename else content


def broken_pickle(record: zipfile.ZipInfo, content: bytes) -> bytes:
    return content[: len(content) // 2] if record.filename.endswith("data.pkl") else content


def stride_zero(shard: dict[str, Any]) -> None:
    shard["tok_embeddings.weight"] = torch.ones(1, 1).expand(16, 16)


def lone_rank_differs(shard: dict[str, Any]) -> None:
    shard[NORM] += 1


CASES: list[tuple[str, Damage, type[HerdError], str]] = [
    ("no shards", lambda folder: [path.unlink() for path in folder.glob("*.pth")], NotFoundError, "no weights"),
    ("a missing first shard", remove("consolidated.00.pth"), CheckpointError, r"consolidated\.00\.pth is missing"),
    ("a missing last shard", remove(SHARD), CheckpointError, r"\[16, 16\]"),
    (
        "a hole in the numbers",
        lambda folder: (folder / SHARD).rename(folder / "consolidated.07.pth"),
        CheckpointError,
        r"\.01\.pth",
    ),
    ("an empty shard", with_bytes(SHARD, b""), CheckpointError, "not a zip archive"),
    ("a text in its place", with_bytes(SHARD, b"version https://git-lfs.github.com/spec/v1\n"), CheckpointError, "not a zip archive"),
    ("a shard cut in half", cut(0.5), CheckpointError, "cut short"),
    ("a shard without its last bytes", cut(0.999), CheckpointError, "cut short"),
    ("a pickle that runs a command", bomb, CheckpointError, "its pickle calls (posix|nt).system"),
    ("a bare pickle that runs a command", plain_pickle_bomb, CheckpointError, "not a zip archive"),
    ("torch's old format", legacy_file, CheckpointError, "not a zip archive"),
    ("compressed records", repacked(lambda _, content: content, zipfile.ZIP_DEFLATED), CheckpointError, "compressed"),
    ("records that are too short", repacked(shorter_data), CheckpointError, "sizes of its records"),
    ("a pickle cut short", repacked(broken_pickle), CheckpointError, "cannot be read"),
    ("a list of tensors", lambda folder: torch.save([torch.ones(2)], folder / SHARD), CheckpointError, "flat table"),
    ("a nested table", lambda folder: torch.save({"model": {NORM: torch.ones(2)}}, folder / SHARD), CheckpointError, "flat table"),
    ("a tensor of stride zero", with_shard(stride_zero), CheckpointError, "contiguous"),
    ("a sparse tensor", with_shard(lambda shard: shard.update({NORM: torch.eye(16).to_sparse()})), CheckpointError, SHARD),
    ("a missing tensor", with_shard(lambda shard: shard.pop(NORM)), CheckpointError, NORM),
    ("a misnamed tensor", with_shard(lambda shard: shard.update({"nrom.weight": shard.pop(NORM)})), CheckpointError, NORM),
    ("an unexpected tensor", with_shard(lambda shard: shard.update({"layers.0.bias": torch.ones(2)})), CheckpointError, "layers.0.bias"),
    ("a mis-shaped tensor", with_shard(lambda shard: shard.update({NORM: torch.ones(17)})), CheckpointError, r"\[17\]"),
    ("a tensor of integers", with_shard(lambda shard: shard.update({NORM: torch.ones(16).int()})), CheckpointError, "int32"),
    ("shards of two dtypes", with_shard(lambda shard: shard.update({NORM: torch.ones(16).half()})), CheckpointError, "different dtypes"),
    ("copies that differ", with_shard(lone_rank_differs), CheckpointError, "differs between the shards"),
    ("missing scales", remove("fp8_scales_1.pt"), CheckpointError, "fp8_scales_1.pt"),
    ("a scale too few", with_scales(lambda scales: scales.pop("1_feed_forward.w2_1")), CheckpointError, "1_feed_forward.w2_1"),
    ("a scale per tensor", with_scales(lambda s: s.update({"1_feed_forward.w2_1": torch.ones(1)})), CheckpointError, "16 rows"),
    ("a scale that is NaN", with_scales(lambda s: s["1_feed_forward.w2_1"].fill_(float("nan"))), CheckpointError, "not positive"),
    ("a scale of zero", with_scales(lambda scales: scales["1_feed_forward.w2_1"].zero_()), CheckpointError, "not positive"),
    ("params that are no JSON", with_bytes("params.json", b"dim: 16"), CheckpointError, "not valid JSON"),
    ("params that are a list", with_bytes("params.json", b"[]"), CheckpointError, "list"),
    ("params with NaN", with_bytes("params.json", b'{"dim": 16, "norm_eps": NaN}'), CheckpointError, "NaN"),
    ("params with infinity", with_params(rope_theta=1e308 * 10), CheckpointError, "Infinity"),
    ("params without a dimension", with_bytes("params.json", b'{"n_heads": 2}'), ConfigError, "no dim"),
    ("params of dimension zero", with_params(dim=0), ConfigError, "dim 0"),
    ("params of no heads", with_params(n_heads=0), ConfigError, "n_heads 0"),
    ("params of negative layers", with_params(n_layers=-1), ConfigError, "-1"),
    ("params of a billion layers", with_params(n_layers=10**9), CheckpointError, "1000000000"),
    ("params of a huge dimension", with_params(dim=10**300), ConfigError, "dim"),
    ("params of a negative epsilon", with_params(norm_eps=-1e-5), ConfigError, "-1e-05"),
    ("params of a negative width", with_params(ffn_dim_multiplier=-1.0), ConfigError, "-1.0"),
    ("params of another width", with_params(ffn_dim_multiplier=2.0), CheckpointError, "w1"),
    ("params of uneven KV heads", with_params(n_kv_heads=3), ConfigError, "3 KV heads"),
    ("params of another vocabulary", with_params(vocab_size=33), CheckpointError, "vocab_size 33"),
    ("params of an image model", with_params(vision_chunk_size=448), ConfigError, "image"),
    ("params of int4 weights", with_params(quantization_args={"group_size": 32}), ConfigError, "int4"),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tiny sound model in two shards with 8-bit matrices."""
    with torch.device("meta"):
        model = Transformer(CONFIG)
    (tmp_path / "model").mkdir()
    write_meta(ModelSource(initialise(model, seed=9)), tmp_path / "model", shards=2, fp8=True)
    return tmp_path / "model"


def test_the_undamaged_folder_loads(folder: Path) -> None:
    load_model(folder)


@pytest.mark.parametrize(("damage", "error", "fragment"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_damage_is_refused_by_name(folder: Path, tmp_path: Path, damage: Damage, error: type[HerdError], fragment: str) -> None:
    damage(folder)
    before = sorted(path for path in tmp_path.rglob("*"))
    for attempt in (lambda: load_model(folder), lambda: convert(folder, tmp_path / "out", to="hf")):
        with pytest.raises(error, match=fragment) as caught:
            attempt()
        assert caught.value.hint and "weights_only" not in caught.value.message
    assert sorted(path for path in tmp_path.rglob("*")) == before and not (tmp_path / "bang").exists()
