"""`herd convert` and `herd verify` on the command line: reports, what is written, exit codes, and where progress goes."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from herd_command import HerdCommand  # pyright: ignore[reportMissingImports]

from herd.checkpoint.load import load_model
from herd.inference.llm import LLM

NUM_TENSORS = 3 + 2 * 9


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model, to be damaged."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "model"))


def with_norm(folder: Path, norm: torch.Tensor) -> None:
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    safetensors.torch.save_file({**tensors, "model.norm.weight": norm}, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("target", "flags"),
    [
        ("out", ("--to", "hf", "--dtype", "bfloat16")),
        ("out", ("--to", "meta", "--shards", "2")),
        ("out.gguf", ("--to", "gguf", "-q", "q8_0")),
        ("out.gguf", ("--to", "gguf", "--quantisation", "F16")),
    ],
)
def test_a_conversion_is_reported_and_answers(
    herd: HerdCommand, tiny_folder: Path, tmp_path: Path, target: str, flags: tuple[str, ...]
) -> None:
    result = herd("convert", tiny_folder, tmp_path / target, *flags, "--json")
    assert result.code == 0, result.err
    data = result.json
    assert list(data) == ["path", "num_tensors", "size_bytes", "seconds", "notes"]
    assert (data["path"], data["num_tensors"], data["notes"]) == (str(tmp_path / target), NUM_TENSORS, [])
    files = [tmp_path / target] if target.endswith(".gguf") else list((tmp_path / target).iterdir())
    assert data["size_bytes"] == sum(file.stat().st_size for file in files)
    assert herd("run", "-m", tmp_path / target, "--max-tokens", "2", "x").code == 0
    assert herd("verify", tmp_path / target).code == 0


def test_there_and_back_keeps_every_bit(herd: HerdCommand, tiny_folder: Path, tiny_llm: LLM, tmp_path: Path) -> None:
    assert herd("convert", tiny_folder, tmp_path / "a", "--to", "meta").code == 0
    assert herd("convert", tmp_path / "a", tmp_path / "b.gguf", "--to", "gguf", "-q", "F32").code == 0
    assert herd("convert", tmp_path / "b.gguf", tmp_path / "c", "--to", "hf").code == 0
    again = load_model(tmp_path / "c", dtype="float32")
    for name, parameter in tiny_llm.model.named_parameters():
        assert torch.equal(again.get_parameter(name), parameter)


def test_without_json_the_report_is_a_line_on_stderr(herd: HerdCommand, tiny_folder: Path, tmp_path: Path) -> None:
    result = herd("convert", tiny_folder, tmp_path / "out", "--to", "meta")
    assert (result.code, result.out) == (0, "")
    assert f"wrote {NUM_TENSORS} tensors" in result.err and str(tmp_path / "out") in result.err


def test_a_model_without_a_tokenizer_is_converted_with_a_note(herd: HerdCommand, folder: Path, tmp_path: Path) -> None:
    for path in folder.glob("tokenizer*"):
        path.unlink()
    result = herd("convert", folder, tmp_path / "out.gguf", "--to", "gguf", "--json")
    assert result.code == 0 and "note: the file has no tokenizer" in result.err
    assert result.json["notes"] == ["the file has no tokenizer: none lies beside the source"]


def test_progress_goes_to_stderr_and_never_to_stdout(
    herd: HerdCommand, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("herd.base.progress.SHOW_AFTER_S", -1.0)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    result = herd("convert", tiny_folder, tmp_path / "out", "--to", "hf", "--json")
    assert result.code == 0 and result.json["num_tensors"] == NUM_TENSORS
    assert "converting to hf" in result.err and "\x1b" not in result.out


def test_progress_off_a_terminal_is_plain_lines(
    herd: HerdCommand, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("herd.base.progress.PLAIN_EVERY_S", -1.0)
    result = herd("convert", tiny_folder, tmp_path / "out", "--to", "hf", "--json")
    assert result.code == 0 and result.json["num_tensors"] == NUM_TENSORS
    assert "converting to hf 5  of 21 model.layers" in result.err and "\x1b" not in result.err


def test_what_is_there_is_replaced_only_when_asked(herd: HerdCommand, tiny_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").write_text("mine")
    message, hint = herd("convert", tiny_folder, tmp_path / "out", "--to", "meta").refusal(2)
    assert "exists and is not empty" in message and "--overwrite" in hint
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["precious"]
    assert herd("convert", tiny_folder, tmp_path / "out", "--to", "meta", "--overwrite").code == 0
    assert (tmp_path / "out" / "params.json").is_file() and not (tmp_path / "out" / "precious").exists()


@pytest.mark.parametrize(
    ("target", "flags", "fragment"),
    [
        ("out", ("--to", "onnx"), "unknown format 'onnx'"),
        ("out", ("--to", "gguf"), "not the name of a GGUF file"),
        ("out.gguf", ("--to", "gguf", "-q", "Q9_K"), "'Q9_K'"),
        ("out.gguf", ("--to", "gguf", "--dtype", "float16"), "take a quantisation, not a dtype"),
        ("out", ("--to", "hf", "--shards", "2"), "2 shards belongs to Meta's format"),
        ("out", ("--to", "hf", "--fp8"), "fp8 belongs to Meta's format"),
        ("out", ("--to", "hf", "--dtype", "int8"), "'int8' is not a dtype"),
        ("out", ("--to", "meta", "--shards", "0"), "0"),
        ("out", ("--to", "meta", "--shards", "3"), "3"),
    ],
)
def test_what_cannot_be_converted_so_is_refused_and_nothing_is_written(
    herd: HerdCommand, tiny_folder: Path, tmp_path: Path, target: str, flags: tuple[str, ...], fragment: str
) -> None:
    message, _ = herd("convert", tiny_folder, tmp_path / target, *flags).refusal(2)
    assert fragment in message and list(tmp_path.iterdir()) == []


def test_a_sound_checkpoint_passes(herd: HerdCommand, tiny_folder: Path) -> None:
    result = herd("verify", tiny_folder, "--json")
    assert result.code == 0
    data = result.json
    assert list(data) == [
        "path",
        "format",
        "ok",
        "num_tensors",
        "num_parameters",
        "size_bytes",
        "dtypes",
        "problems",
        "sha256",
        "non_finite",
    ]
    assert data["ok"] is True and data["problems"] == [] and data["non_finite"] == 0
    assert data["num_tensors"] == NUM_TENSORS and data["dtypes"] == {"F32": NUM_TENSORS}
    assert set(data["sha256"]) == {path.name for path in tiny_folder.iterdir()}
    plain = herd("verify", tiny_folder)
    assert (plain.code, plain.err) == (0, "") and plain.out.endswith("no problems\n") and data["sha256"]["config.json"] in plain.out


def test_a_checkpoint_with_problems_ends_with_5_and_lists_them_all(herd: HerdCommand, folder: Path) -> None:
    with_norm(folder, torch.full((32,), float("nan")))
    (folder / "SHA256SUMS").write_text(f"{'0' * 64}  config.json\n")
    result = herd("verify", folder, "--json")
    data = result.json
    message, hint = result.refusal(5)
    assert message == f"{folder} has 2 problem(s)" and hint
    assert data["ok"] is False and data["non_finite"] == 32
    assert [(problem["kind"], problem["name"]) for problem in data["problems"]] == [
        ("values", "model.norm.weight"),
        ("hash", "config.json"),
    ]
    assert all(set(problem) == {"kind", "name", "message", "hint"} for problem in data["problems"])
    plain = herd("verify", folder)
    assert plain.code == 5 and "values: model.norm.weight: " in plain.out and "no problems" not in plain.out


def test_a_damaged_file_is_a_problem_and_nothing_there_is_no_checkpoint(herd: HerdCommand, folder: Path, tmp_path: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[:-100])
    kinds = [problem["kind"] for problem in json.loads(herd("verify", folder, "--json").out)["problems"]]
    assert "damaged" in kinds
    assert herd("verify", tmp_path / "nothing").refusal(3)[0]


def test_a_model_may_be_named_by_alias_here_too(herd: HerdCommand, tiny_folder: Path, herd_home: Path, tmp_path: Path) -> None:
    target = herd_home / "models" / "meta-llama" / "Llama-3.2-1B-Instruct"
    target.parent.mkdir(parents=True)
    target.symlink_to(tiny_folder)
    assert herd("verify", "llama3.2:1b").code == 0
    assert herd("convert", "llama3.2:1b", tmp_path / "out", "--to", "meta").code == 0


def test_an_interrupt_leaves_nothing_behind(herd: HerdCommand, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any) -> torch.Tensor:
        raise KeyboardInterrupt

    monkeypatch.setattr("herd.checkpoint.hf.HfSource.read", interrupted)
    for target, form in (("out", "meta"), ("out.gguf", "gguf"), ("out", "hf")):
        assert herd("convert", tiny_folder, tmp_path / target, "--to", form).code == 130
    assert list(tmp_path.iterdir()) == []
