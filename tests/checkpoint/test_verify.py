"""Verification lists everything that is wrong, and says what a sound checkpoint holds."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from herd.base.errors import NotFoundError
from herd.checkpoint.convert import convert
from herd.checkpoint.load import save_model
from herd.checkpoint.verify import verify
from herd.model.config import ModelConfig
from herd.model.init import initialise
from herd.model.transformer import Transformer

CONFIG = ModelConfig(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tiny float32 model in Hugging Face's layout."""
    with torch.device("meta"):
        model = Transformer(CONFIG)
    save_model(initialise(model, seed=7), tmp_path / "model")
    return tmp_path / "model"


def change(folder: Path, **tensors: torch.Tensor | None) -> None:
    """Replace, add or (None) remove tensors."""
    path = folder / "model.safetensors"
    table: dict[str, Any] = {**safetensors.torch.load_file(path), **tensors}
    safetensors.torch.save_file({name: tensor for name, tensor in table.items() if tensor is not None}, path)


def test_a_sound_folder_is_described(folder: Path) -> None:
    report = verify(folder)
    assert report.ok and report.non_finite == 0 and report.format == "hf"
    assert report.num_tensors == len(CONFIG.parameter_shapes()) and report.num_parameters == CONFIG.num_parameters
    assert report.dtypes == {"F32": report.num_tensors}
    assert report.sha256["model.safetensors"] == hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert report.size_bytes == sum(path.stat().st_size for path in folder.iterdir())
    data = json.loads(json.dumps(report.to_dict()))
    assert data["ok"] is True and data["problems"] == [] and data["path"] == str(folder)


@pytest.mark.parametrize(("to", "name", "options"), [("meta", "out", {"shards": 2, "fp8": True}), ("gguf", "out.gguf", {})])
def test_other_formats_are_described(folder: Path, tmp_path: Path, to: Any, name: str, options: dict[str, Any]) -> None:
    convert(folder, tmp_path / name, to=to, **options)
    report = verify(tmp_path / name)
    assert report.ok and report.format == to and report.num_parameters == CONFIG.num_parameters
    assert set(report.dtypes) == ({"F8_E4M3", "BF16"} if to == "meta" else {"BF16", "F32"})


def test_every_problem_is_listed_at_once(folder: Path) -> None:
    change(
        folder,
        **{
            "model.norm.weight": None,
            "model.norms.weight": torch.ones(32),
            "model.layers.0.mlp.up_proj.weight": torch.ones(32, 64),
            "model.layers.1.input_layernorm.weight": torch.tensor([float("nan"), float("inf")] + [1.0] * 30),
            "lm_head.weight": torch.ones(64, 32, dtype=torch.int8),
        },
    )
    report = verify(folder)
    assert {problem.kind for problem in report.problems} == {"missing", "unexpected", "shape", "dtype", "values"}
    by_kind = {problem.kind: problem for problem in report.problems}
    assert "model.norms.weight" in by_kind["missing"].advice and "model.norm.weight" in by_kind["unexpected"].advice
    assert "[32, 64]" in by_kind["shape"].message and "[64, 32]" in by_kind["shape"].message
    assert report.non_finite == 2 and "2 values" in by_kind["values"].message
    assert not report.ok and all(problem["hint"] for problem in report.to_dict()["problems"])


def test_a_damaged_shard_does_not_hide_the_others(folder: Path, tmp_path: Path) -> None:
    convert(folder, tmp_path / "out", to="hf", shard_bytes=20_000)
    shards = sorted((tmp_path / "out").glob("model-*.safetensors"))
    shards[0].write_bytes(shards[0].read_bytes()[:-5])
    shards[-1].unlink()
    report = verify(tmp_path / "out")
    damaged = [problem.name for problem in report.problems if problem.kind == "damaged"]
    assert damaged == [shards[0].name, shards[-1].name]
    assert report.num_tensors > 0 and any(problem.kind == "missing" for problem in report.problems)


def test_damaged_meta_shards_are_all_named(folder: Path, tmp_path: Path) -> None:
    convert(folder, tmp_path / "out", to="meta", shards=2)
    for rank in (0, 1):
        (tmp_path / "out" / f"consolidated.0{rank}.pth").write_bytes(b"PK")
    report = verify(tmp_path / "out")
    assert [problem.name for problem in report.problems if problem.kind == "damaged"] == ["consolidated.00.pth", "consolidated.01.pth"]
    assert [problem.name for problem in report.problems if problem.kind == "hash"] == ["consolidated.00.pth", "consolidated.01.pth"]


def test_an_impossible_config_is_a_problem_not_an_error(folder: Path) -> None:
    data = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(data | {"num_key_value_heads": 3}))
    report = verify(folder)
    assert [problem.kind for problem in report.problems] == ["config"] and report.num_tensors == 0 and report.sha256


def test_published_hashes_are_compared(folder: Path, tmp_path: Path) -> None:
    lines = [f"{hashlib.sha256(path.read_bytes()).hexdigest()} *{path.name}" for path in sorted(folder.iterdir())]
    (folder / "SHA256SUMS").write_text("\n".join(lines) + "\n")
    assert verify(folder).ok
    (folder / "generation_config.json").write_text("{}")
    with open(folder / "SHA256SUMS", "a") as file:
        file.write(f"{'0' * 64}  absent.bin\nnot a hash\n")
    problems = verify(folder).problems
    assert [(problem.kind, problem.name) for problem in problems] == [
        ("hash", "generation_config.json"),
        ("missing", "absent.bin"),
        ("hash", "SHA256SUMS, line 5"),
    ]


def test_metas_checklist_is_compared(folder: Path, tmp_path: Path) -> None:
    convert(folder, tmp_path / "out", to="meta", shards=2)
    assert verify(tmp_path / "out").ok
    params = (tmp_path / "out" / "params.json").read_text()
    (tmp_path / "out" / "params.json").write_text(params + " ")
    assert [(problem.kind, problem.name) for problem in verify(tmp_path / "out").problems] == [("hash", "params.json")]


def test_a_path_without_a_checkpoint_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        verify(tmp_path / "absent")
    with pytest.raises(NotFoundError):
        verify(tmp_path)
