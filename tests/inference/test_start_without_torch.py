"""A model whose packed weights are there answers without torch, with the very bits of its `Transformer`; what needs torch gets it then."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import asked  # pyright: ignore[reportMissingImports]
import numpy as np
import pytest
import torch

from herd.checkpoint.load import load_model, save_model
from herd.engine.packed import angles
from herd.engine.packed.file import read_sections
from herd.engine.packed.mapped import find_mapped, locate
from herd.engine.packed.names import packed_dir
from herd.inference.llm import LLM
from herd.kernels import dispatch, torch_build
from herd.kernels.rope import RopeTable
from herd.kernels.torch_build import may_have_gpu
from herd.model.config import ModelConfig, RopeScaling
from herd.model.rope import rope_frequencies
from herd.quant.run import quantise_checkpoint
from herd.quant.schemes import Settings
from herd.text.tokenizer import Tokenizer, load_tokenizer

pytestmark = [
    pytest.mark.skipif(dispatch.choice().library is None, reason="the C kernels do not run here"),
    pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU takes the model"),
]
KINDS = ("float32", "bfloat16", "int8", "int4")


@pytest.fixture(scope="module")
def folders(tiny_folder: Path, tiny_tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("kinds")
    save_model(load_model(tiny_folder, dtype="bfloat16"), root / "bfloat16", tokenizer=tiny_tokenizer)
    for scheme in ("int8", "int4"):
        quantise_checkpoint(root / "bfloat16", root / scheme, Settings(scheme=scheme, group=32))
    return {"float32": tiny_folder, **{kind: root / kind for kind in KINDS[1:]}}


def warm(folder: Path) -> None:
    """A first start, after which packed weights and angles are there."""
    LLM(folder, device="cpu").close()
    assert locate(folder, None) is not None and list(packed_dir().glob("*.angles"))


def start(folder: Path, *wanted: str, cache_dtype: str = "same") -> dict[str, Any]:
    """Ask in a process of its own."""
    words = [sys.executable, asked.__file__, str(folder), cache_dtype, *wanted]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, check=False, env=os.environ)
    assert done.returncode == 0, done.stderr
    return {"err": done.stderr, **json.loads(done.stdout)}


def expected(folder: Path, cache_dtype: str | None = None) -> list[Any]:
    """The answers of the checkpoint's Transformer."""
    llm = LLM(load_model(folder), tokenizer=load_tokenizer(folder), engine=replace(asked.SIZES, cache_dtype=cache_dtype))
    return json.loads(json.dumps(asked.ask(llm)))


@pytest.mark.parametrize("kind", KINDS)
def test_the_answers_are_the_transformers_bit_for_bit(folders: dict[str, Path], kind: str) -> None:
    warm(folders[kind])
    found = start(folders[kind])
    assert not found["torch"] and found["answers"] == expected(folders[kind])


def test_so_they_are_with_a_cache_of_int8(folders: dict[str, Path]) -> None:
    warm(folders["bfloat16"])
    found = start(folders["bfloat16"], cache_dtype="int8")
    assert not found["torch"] and found["answers"] == expected(folders["bfloat16"], "int8")


def test_what_needs_torch_gets_it_and_the_model_goes_on(folders: dict[str, Path]) -> None:
    folder = folders["float32"]
    warm(folder)
    found = start(folder, "embed", "model")
    plain = LLM(load_model(folder), tokenizer=load_tokenizer(folder), engine=asked.SIZES)
    assert not found["torch"]
    assert found["then"] == [[asked.then(plain, "embed"), True], [asked.then(plain, "model"), True]]


def test_a_quantised_model_embeds_and_refuses_as_ever(folders: dict[str, Path]) -> None:
    folder = folders["int8"]
    warm(folder)
    found = start(folder, "embed", "refusal")
    plain = LLM(load_model(folder), tokenizer=load_tokenizer(folder), engine=asked.SIZES)
    assert not found["torch"] and found["then"][0] == [asked.then(plain, "embed"), True]
    assert "it generates, and does nothing else" in found["then"][1][0]


@pytest.mark.parametrize("harm", ["no angles", "damaged angles", "damaged weights", "changed checkpoint", "none kept"])
def test_what_is_missing_or_stale_is_made_anew_with_torch(
    folders: dict[str, Path], tmp_path: Path, harm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "copy"
    folder.mkdir()
    for path in folders["bfloat16"].iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    warm(folder)
    (weights,), (table,) = packed_dir().glob("*.herdpack"), packed_dir().glob("*.angles")
    if harm == "no angles":
        table.unlink()
    elif harm == "damaged angles":
        table.write_bytes(table.read_bytes()[:-4096])
    elif harm == "damaged weights":
        weights.write_bytes(weights.read_bytes()[:-4096])
    elif harm == "changed checkpoint":
        os.utime(folder / "model.safetensors")
    else:
        monkeypatch.setenv("HERD_PACKED_BYTES", "0")
    found = start(folder)
    assert found["torch"] and found["answers"] == expected(folder)
    assert ("made anew" in found["err"]) == (harm == "damaged weights")
    assert start(folder)["torch"] == (harm == "none kept"), "a start later it is warm again"


def test_other_sizes_and_places_are_loaded_with_torch(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = folders["bfloat16"]
    warm(folder)
    assert find_mapped(folder, "float16") is None and find_mapped(folder, "no dtype") is None
    disk = LLM(folder, device="cpu", engine=replace(asked.SIZES, prefix_dir=str(tmp_path / "prefixes")))
    drafted = LLM(folder, device="cpu", engine=asked.SIZES, draft=folder)
    guessed = LLM(folder, device="cpu", engine=asked.SIZES, draft="ngram")
    answers = [json.loads(json.dumps(asked.ask(llm))) for llm in (disk, drafted, guessed)]
    assert answers == [expected(folder)] * 3
    disk.close()


def test_the_reference_and_other_kernels_are_torchs(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    folder = folders["bfloat16"]
    warm(folder)
    assert find_mapped(folder, None) is not None
    monkeypatch.setenv("HERD_KERNELS", "reference")
    dispatch.reload()
    try:
        assert find_mapped(folder, None) is None
    finally:
        monkeypatch.delenv("HERD_KERNELS")
        dispatch.reload()


SCALINGS = (None, RopeScaling(factor=8.0, original_max_position_embeddings=256), RopeScaling(factor=32.0, low_freq_factor=0.5))


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("head_dim", [8, 30, 128])
def test_kept_angles_are_torchs_own_and_go_on_beyond_their_end(
    scaling: RopeScaling | None, head_dim: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(angles, "MOST_POSITIONS", 700)
    sizes = {"vocab_size": 8, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    config = ModelConfig(**sizes, num_attention_heads=1, num_key_value_heads=1, head_dim=head_dim, rope_scaling=scaling)
    assert angles.find_angles(config) is None
    angles.keep_angles(config)
    found = angles.find_angles(config)
    assert found is not None
    for count in (1, 700, 3000):
        for kept, own in zip(found.upto(count), RopeTable(rope_frequencies(config)).upto(count), strict=True):
            assert len(kept) >= count
            np.testing.assert_array_equal(kept.numpy()[:count], own[:count].numpy())


def test_angles_of_another_torch_are_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"vocab_size": 8, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    config = ModelConfig(**sizes, num_attention_heads=1, num_key_value_heads=1, head_dim=8, max_position_embeddings=64)
    angles.keep_angles(config)
    (path,) = packed_dir().glob("*.angles")
    assert read_sections(path)[0]["cos"].shape == (512, 4)
    monkeypatch.setattr(angles, "version_text", lambda: "__version__ = '99'")
    assert angles.find_angles(config) is None


VERSION = "__version__ = '2.13.0{}'\ncuda: Optional[str] = {}\nhip: Optional[str] = {}\n"


@pytest.mark.parametrize(
    ("text", "asks"),
    [
        (VERSION.format("+cpu", None, None), False),
        (VERSION.format("+cu128", "'12.8'", None), True),
        (VERSION.format("+rocm6", None, "'6.4'"), True),
        ("", True),
        ("__version__ = '2.13.0'", True),
    ],
)
def test_torch_is_asked_for_a_gpu_where_it_may_have_one(text: str, asks: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert may_have_gpu(), "torch is there already"
    monkeypatch.delitem(sys.modules, "torch")
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(torch_build, "version_text", lambda: text)
    monkeypatch.setattr(torch_build, "_DEVICES", (str(tmp_path),))
    assert may_have_gpu() == asks
    monkeypatch.setattr(torch_build, "_DEVICES", (str(tmp_path / "none"),))
    assert not may_have_gpu()
