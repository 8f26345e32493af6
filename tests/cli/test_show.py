"""`herd show`: published shapes to the last parameter, checkpoints from their headers, and no weights read."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from herd_command import HerdCommand  # pyright: ignore[reportMissingImports]

from herd.checkpoint.convert import convert
from herd.inference.llm import LLM
from herd.model.presets import PRESETS

KEYS = [
    "name",
    "path",
    "format",
    "num_parameters",
    "context",
    "kv_bytes_per_token",
    "config",
    "size_bytes",
    "stored_bytes",
    "quantisation",
]


@pytest.mark.parametrize(
    ("name", "parameters", "context"),
    [
        ("llama-3.1-8b", 8_030_261_248, 131_072),
        ("llama-3.1-70b", 70_553_706_496, 131_072),
        ("llama-3.1-405b", 405_853_388_800, 131_072),
        ("llama-3-8b", 8_030_261_248, 8_192),
        ("llama-3.2-1b", 1_235_814_400, 131_072),
    ],
)
def test_published_shapes_have_their_exact_parameter_counts(herd: HerdCommand, name: str, parameters: int, context: int) -> None:
    data = herd("show", name, "--json").json
    assert list(data) == KEYS
    assert (data["num_parameters"], data["context"], data["size_bytes"]) == (parameters, context, 2 * parameters)
    assert (data["path"], data["format"], data["quantisation"]) == (None, "preset", None)
    plain = herd("show", name)
    assert f"{parameters:,}" in plain.out and f"{context:,} tokens" in plain.out and plain.err == ""


def test_a_preset_says_its_config(herd: HerdCommand) -> None:
    data = herd("show", "llama-3.1-8b", "--json").json
    scaling = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    assert data["config"]["rope_scaling"] == scaling
    assert data["kv_bytes_per_token"] == 2 * 32 * 8 * 128 * 2
    facts = herd("show", "llama-3.1-8b").out
    assert "32 query, 8 KV, of 128" in facts and "theta 500000, scaled by 8" in facts and "(a published shape, no files)" in facts


def test_every_preset_can_be_shown(herd: HerdCommand) -> None:
    for name, config in PRESETS.items():
        assert herd("show", name, "--json").json["num_parameters"] == config.num_parameters


def test_a_checkpoint_is_shown_from_its_files(herd: HerdCommand, tiny_folder: Path, tiny_llm: LLM) -> None:
    config = tiny_llm.model.config
    data = herd("show", tiny_folder, "--json").json
    assert list(data) == KEYS
    assert (data["name"], data["path"], data["format"]) == (str(tiny_folder), str(tiny_folder), "hf")
    assert data["num_parameters"] == config.num_parameters
    assert data["stored_bytes"] == {"F32": 4 * config.num_parameters} and data["size_bytes"] == 4 * config.num_parameters
    assert data["config"]["hidden_size"] == 32 and data["quantisation"] is None
    plain = herd("show", tiny_folder).out
    assert f"{config.num_parameters:,}" in plain and "not scaled" in plain and "512 tokens" in plain


@pytest.mark.parametrize(
    ("options", "format", "stored", "quantisation"),
    [
        ({"to": "gguf", "quantisation": "Q8_0"}, "gguf", {"Q8_0", "F32"}, "Q8_0"),
        ({"to": "gguf", "quantisation": "BF16"}, "gguf", {"BF16", "F32"}, None),
        ({"to": "meta", "dtype": "bfloat16"}, "meta", {"BF16"}, None),
        ({"to": "hf", "dtype": "float16"}, "hf", {"F16"}, None),
    ],
)
def test_every_format_says_how_it_stores_its_weights(
    herd: HerdCommand, tiny_folder: Path, tmp_path: Path, options: dict[str, Any], format: str, stored: set[str], quantisation: str | None
) -> None:
    target = tmp_path / ("model.gguf" if options["to"] == "gguf" else "model")
    convert(tiny_folder, target, **options)
    data = herd("show", target, "--json").json
    assert (data["format"], set(data["stored_bytes"]), data["quantisation"]) == (format, stored, quantisation)
    assert herd("show", target).out.split("quantisation")[1].split()[0] == (quantisation or "none")


def test_no_weights_are_read(herd: HerdCommand, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("herd.checkpoint.safetensors_file.SafetensorsFile.read", lambda *_: pytest.fail("weights were read"))
    monkeypatch.setattr("herd.checkpoint.safetensors_file.SafetensorsFile.map", lambda *_: pytest.fail("weights were mapped"))
    assert herd("show", tiny_folder).code == 0


def test_a_folder_of_a_presets_name_is_the_folder(herd: HerdCommand, tiny_folder: Path, tmp_path: Path) -> None:
    os.symlink(tiny_folder, tmp_path / "llama-3.1-8b")
    assert herd("show", "llama-3.1-8b", "--json").json["format"] == "hf"


def test_without_a_name_the_model_setting_is_shown(herd: HerdCommand, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HERD_MODEL", "llama-3.2-3b")
    assert herd("show", "--json").json["name"] == "llama-3.2-3b"


def test_what_is_not_there_is_refused_with_how_to_get_it(herd: HerdCommand, tmp_path: Path) -> None:
    assert herd("show", "llama3.1:8b").refusal(3)[1] == "fetch it: herd pull llama3.1:8b"
    assert "no checkpoint" in herd("show", tmp_path).refusal(3)[0]
