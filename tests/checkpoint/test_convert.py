"""Conversion: lossless round trips between all formats, companions, disk space, and nothing left behind when it is stopped."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from herd.base.errors import CheckpointError, DoesNotFitError, HerdError, NotFoundError, UsageError
from herd.checkpoint.convert import convert
from herd.checkpoint.hf import HfSource, write_hf
from herd.checkpoint.hf_config import SpecialIds
from herd.checkpoint.load import ModelSource, load_model, save_model
from herd.model.config import ModelConfig, RopeScaling
from herd.model.init import initialise
from herd.model.transformer import Transformer
from herd.text.tokenizer import Tokenizer, load_tokenizer

CONFIG = ModelConfig(
    vocab_size=512,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=3,
    num_attention_heads=16,
    num_key_value_heads=8,
    head_dim=4,
    rope_scaling=RopeScaling(),
)


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    """A tiny bfloat16 model in Hugging Face's layout with a tokenizer of the 256 bytes."""
    with torch.device("meta"):
        model = Transformer(CONFIG)
    initialise(model, seed=6, dtype=torch.bfloat16)
    save_model(model, tmp_path / "model", tokenizer=Tokenizer({bytes([i]): i for i in range(256)}))
    return tmp_path / "model"


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


@pytest.mark.parametrize("shards", [1, 2, 8, 16])
def test_meta_and_back_gives_the_same_file(model_folder: Path, tmp_path: Path, shards: int) -> None:
    report = convert(model_folder, tmp_path / "meta", to="meta", shards=shards)
    assert (report.num_tensors, report.path, report.notes) == (len(CONFIG.parameter_shapes()), tmp_path / "meta", ())
    assert report.size_bytes == sum(path.stat().st_size for path in (tmp_path / "meta").iterdir())
    convert(tmp_path / "meta", tmp_path / "back", to="hf")
    assert weights(tmp_path / "back") == weights(model_folder)
    assert (tmp_path / "back" / "config.json").read_bytes() == (model_folder / "config.json").read_bytes()


def test_resharding_gives_the_files_that_sharding_gives(model_folder: Path, tmp_path: Path) -> None:
    convert(model_folder, tmp_path / "two", to="meta", shards=2)
    convert(model_folder, tmp_path / "sixteen", to="meta", shards=16)
    convert(tmp_path / "sixteen", tmp_path / "two again", to="meta", shards=2)
    for path in (tmp_path / "two").iterdir():
        assert path.read_bytes() == (tmp_path / "two again" / path.name).read_bytes()


def test_gguf_and_back_gives_the_same_file_and_the_same_tokenizer(model_folder: Path, tmp_path: Path) -> None:
    assert convert(model_folder, tmp_path / "model.gguf", to="gguf").notes == ()
    convert(tmp_path / "model.gguf", tmp_path / "back", to="hf")
    assert weights(tmp_path / "back") == weights(model_folder)
    assert load_tokenizer(tmp_path / "back").ranks == load_tokenizer(model_folder).ranks


def test_safetensors_are_resharded_and_cast(model_folder: Path, tmp_path: Path) -> None:
    convert(model_folder, tmp_path / "wide", to="hf", dtype="float32", shard_bytes=50_000)
    with HfSource(tmp_path / "wide") as wide, HfSource(model_folder) as narrow:
        assert len(list((tmp_path / "wide").glob("model-*.safetensors"))) > 2
        for name in narrow.tensors:
            assert wide.tensors[name].stored == "F32" and torch.equal(wide.read(name), narrow.read(name).float())


@pytest.mark.parametrize("to", ["hf", "meta"])
def test_tokenizer_licence_and_ids_come_along(model_folder: Path, tmp_path: Path, to: str) -> None:
    (model_folder / "LICENSE.txt").write_text("terms")
    (model_folder / "chat_template.jinja").write_text("{{ messages }}")
    convert(model_folder, tmp_path / "out", to=to)
    for name in ("LICENSE.txt", "chat_template.jinja", "tokenizer.model", "tokenizer.json"):
        assert (tmp_path / "out" / name).read_bytes() == (model_folder / name).read_bytes()
    convert(tmp_path / "out", tmp_path / "again", to="hf")
    assert json.loads((tmp_path / "again" / "config.json").read_text())["eos_token_id"] == [257, 264, 265]


def test_a_missing_tokenizer_file_is_made_from_the_one_that_is_there(model_folder: Path, tmp_path: Path) -> None:
    convert(model_folder, tmp_path / "meta", to="meta")
    (tmp_path / "meta" / "tokenizer.json").unlink()
    convert(tmp_path / "meta", tmp_path / "out", to="hf")
    assert load_tokenizer(tmp_path / "out" / "tokenizer.json").ranks == load_tokenizer(model_folder).ranks


def test_a_foreign_tokenizer_is_copied_and_remarked_on(model_folder: Path, tmp_path: Path) -> None:
    for path in model_folder.glob("tokenizer*"):
        path.unlink()
    (model_folder / "tokenizer.json").write_text("{}")
    report = convert(model_folder, tmp_path / "out", to="meta")
    assert "tokenizer" in report.notes[0] and (tmp_path / "out" / "tokenizer.json").read_text() == "{}"


def test_ids_of_the_source_config_are_kept(model_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "ids").mkdir()
    with HfSource(model_folder) as source:
        write_hf(source, tmp_path / "ids", ids=SpecialIds(bos=5, eos=(7,), pad=9))
    convert(tmp_path / "ids", tmp_path / "out", to="hf")
    data = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (data["bos_token_id"], data["eos_token_id"], data["pad_token_id"]) == (5, 7, 9)


def test_progress_counts_to_the_end(model_folder: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int, str]] = []
    convert(model_folder, tmp_path / "out", to="meta", shards=2, progress=lambda *step: seen.append(step))
    total = 2 * len(CONFIG.parameter_shapes())
    assert [done for done, _, _ in seen] == list(range(total)) and {of for _, of, _ in seen} == {total}


@pytest.mark.parametrize(("to", "name"), [("hf", "out"), ("meta", "out"), ("gguf", "out.gguf")])
def test_a_conversion_that_is_stopped_leaves_nothing(model_folder: Path, tmp_path: Path, to: str, name: str) -> None:
    def stop(done: int, total: int, tensor: str) -> None:
        if done == total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(model_folder, tmp_path / name, to=to, progress=stop)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_conversion_that_is_killed_leaves_no_destination_and_keeps_what_was_there(model_folder: Path, tmp_path: Path) -> None:
    convert(model_folder, tmp_path / "out", to="meta")
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    script = (
        "import os, signal, sys\nfrom herd.checkpoint.convert import convert\n"
        "kill = lambda done, total, name: os.kill(os.getpid(), signal.SIGKILL) if done == 10 else None\n"
        "convert(sys.argv[1], sys.argv[2], to='hf', overwrite=True, progress=kill)\n"
    )
    command = [sys.executable, "-c", script, str(model_folder)]
    for target in ("new", "out"):
        result = subprocess.run([*command, str(tmp_path / target)], env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False)
        assert result.returncode == -9
    assert not (tmp_path / "new").exists()
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


@pytest.mark.parametrize(("to", "name"), [("hf", "out"), ("meta", "out"), ("gguf", "out.gguf")])
def test_too_small_a_disk_is_refused_before_anything_is_written(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, to: str, name: str
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(DoesNotFitError, match=r"1,000 free") as caught:
        convert(model_folder, tmp_path / name, to=to)
    # F32 norms are a little more than half of BF16 ones; the rest is the same in every format.
    assert f"{CONFIG.num_parameters * 2:,}" in caught.value.message or to == "gguf"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_the_disk_check_knows_the_size_of_8_bit_shards(model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    convert(model_folder, tmp_path / "eight", to="meta", shards=8, fp8=True)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=0))
        with pytest.raises(DoesNotFitError) as caught:
            convert(model_folder, tmp_path / "again", to="meta", shards=8, fp8=True)
    needed = int(caught.value.message.split(" take ")[1].split(" bytes")[0].replace(",", ""))
    shards = [torch.load(path, weights_only=True) for path in (tmp_path / "eight").glob("*.p*t*")]
    assert needed == sum(tensor.nbytes for shard in shards for tensor in shard.values())


REFUSED: list[tuple[str, dict[str, Any], str, type[HerdError], str]] = [
    ("a misspelt format", {"to": "ggfu"}, "out", UsageError, "ggfu"),
    ("shards of safetensors", {"to": "hf", "shards": 2}, "out", UsageError, "2 shards"),
    ("8 bits in GGUF", {"to": "gguf", "fp8": True}, "out.gguf", UsageError, "fp8"),
    ("a dtype for GGUF", {"to": "gguf", "dtype": "float16"}, "out.gguf", UsageError, "quantisation"),
    ("an unknown quantisation", {"to": "gguf", "quantisation": "Q8"}, "out.gguf", UsageError, "Q8"),
    ("a GGUF folder", {"to": "gguf"}, "out", UsageError, "GGUF file"),
    ("an unknown dtype", {"to": "hf", "dtype": "float8"}, "out", UsageError, "float8"),
    ("files of no bytes", {"to": "hf", "shard_bytes": 0}, "out", UsageError, "0 bytes"),
    ("shards that do not divide", {"to": "meta", "shards": 7}, "out", UsageError, "vocab_size 512"),
    ("an occupied destination", {"to": "meta"}, "model", UsageError, "not empty"),
    ("a destination around the source", {"to": "meta", "overwrite": True}, ".", UsageError, "inside the destination"),
]


@pytest.mark.parametrize(("options", "name", "error", "fragment"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED])
def test_what_cannot_be_converted_is_refused(
    model_folder: Path, tmp_path: Path, options: dict[str, Any], name: str, error: type[HerdError], fragment: str
) -> None:
    with pytest.raises(error, match=fragment) as caught:
        convert(model_folder, tmp_path / name, **options)
    assert caught.value.hint and [path.name for path in tmp_path.iterdir()] == ["model"]


def test_an_existing_gguf_file_is_replaced_only_if_told(model_folder: Path, tmp_path: Path) -> None:
    convert(model_folder, tmp_path / "out.gguf", to="gguf")
    with pytest.raises(UsageError, match="exists"):
        convert(model_folder, tmp_path / "out.gguf", to="gguf")
    convert(model_folder, tmp_path / "out.gguf", to="gguf", quantisation="F16", overwrite=True)
    assert load_model(tmp_path / "out.gguf").dtype == torch.float16


def test_a_source_that_is_absent_or_damaged_leaves_nothing(model_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        convert(tmp_path / "absent", tmp_path / "out", to="hf")
    (model_folder / "model.safetensors").write_bytes(weights(model_folder)[:-2])
    with pytest.raises(CheckpointError):
        convert(model_folder, tmp_path / "out", to="hf")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_folder_may_be_converted_in_place(model_folder: Path, tmp_path: Path) -> None:
    before = weights(model_folder)
    convert(model_folder, model_folder, to="hf", dtype="float32", overwrite=True)
    convert(model_folder, model_folder, to="hf", dtype="bfloat16", overwrite=True)
    assert weights(model_folder) == before and [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_model_source_without_a_folder_writes_too(tmp_path: Path) -> None:
    with torch.device("meta"):
        model = Transformer(CONFIG)
    initialise(model, seed=1)
    write_hf(ModelSource(model), tmp_path)
    assert load_model(tmp_path).dtype == torch.float32
