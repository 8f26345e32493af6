"""`herd quantize` and `herd quality` on the command line: what is written, what is told, exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from herd_command import HerdCommand  # pyright: ignore[reportMissingImports]

from tiny_model import TEXT  # pyright: ignore[reportMissingImports]


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT * 8, encoding="utf-8")
    return path


def test_quantise_run_and_compare(herd: HerdCommand, tiny_folder: Path, text_file: Path, tmp_path: Path) -> None:
    target, page = tmp_path / "out", tmp_path / "page.html"
    flags = ("--scheme", "int4", "--group", "32", "--calib", str(text_file), "--calib-samples", "4", "--calib-length", "32")
    result = herd("quantize", str(tiny_folder), str(target), *flags, "--report", str(page), "--eval", str(text_file), "--json")
    assert result.code == 0, result.err
    data = json.loads(result.out)
    assert data["method"] == "gptq"
    assert data["bits_per_weight"] == pytest.approx(4.6, abs=0.1)
    assert len(data["matrices"]) == 14
    assert 0.0 < data["quality"]["same_top"] <= 1.0
    assert data["quality"]["mean_kl"] > 0
    assert "Drift of the residual stream" in page.read_text() and "Relative error of each matrix" in page.read_text()
    answer = herd("run", "-m", str(target), "--max-tokens", "4", "Hello")
    assert answer.code == 0, answer.err
    shown = herd("quality", str(tiny_folder), str(target), "--data", str(text_file), "--length", "32", "--samples", "2")
    assert shown.code == 0 and "mean KL" in shown.out
    gate = herd("quality", str(tiny_folder), str(target), "--data", str(text_file), "--length", "32", "--samples", "2", "--max-kl", "0")
    assert gate.code == 5 and "the mean divergence is" in gate.err


def test_questions_with_known_answers(herd: HerdCommand, tiny_folder: Path, text_file: Path, tmp_path: Path) -> None:
    calls, sums = tmp_path / "calls.jsonl", tmp_path / "sums.jsonl"
    tool = {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}}
    call = {"function": {"name": "weather", "arguments": {"city": "Lima"}}}
    messages = [{"role": "user", "content": "Weather?"}, {"role": "assistant", "tool_calls": [call]}]
    calls.write_text(json.dumps({"tools": [tool], "messages": messages}) + "\n")
    sums.write_text("".join(json.dumps({"question": f"{n} + 1?", "answer": f"#### {n + 1}"}) + "\n" for n in range(3)))
    # A model is its own best copy: every answer is the same, and what it gets right is whole.
    flags = ("--data", str(text_file), "--length", "32", "--samples", "1", "--questions", "2", "--answer-tokens", "6")
    result = herd("quality", str(tiny_folder), str(tiny_folder), *flags, "--maths", str(sums), "--json")
    assert result.code == 0, result.err
    found = json.loads(result.out)["sets"]
    assert [(one["kind"], one["num_questions"], one["same"]) for one in found] == [("maths", 2, 1.0)]
    assert all(one["original"] == one["quantised"] for one in found)
    plain = herd("quality", str(tiny_folder), str(tiny_folder), *flags, "--maths", str(sums))
    assert plain.code == 0 and "the same answer to 100.0% of 2" in plain.out
    refused = herd("quality", str(tiny_folder), str(tiny_folder), *flags, "--min-recovery", "0.9")
    assert refused.code == 2 and "--min-recovery needs questions" in refused.err
    long = herd("quality", str(tiny_folder), str(tiny_folder), *flags, "--tool-calls", str(calls))
    assert long.code == 1 and "no question of the set leaves room for an answer; it has 1" in long.err
    wrong = herd("quality", str(tiny_folder), str(tiny_folder), *flags, "--tool-calls", str(sums))
    assert wrong.code == 1 and "record 1 has no assistant's turn with tool_calls" in wrong.err


def test_published_size_of_the_405b_from_its_config(herd: HerdCommand) -> None:
    result = herd("quantize", "405b", "--scheme", "fp8-meta", "--dry-run", "--json")
    assert result.code == 0, result.err
    assert json.loads(result.out)["size_bytes"] == pytest.approx(487.2e9, rel=0.0005)
    assert "487.2" in herd("quantize", "405b", "--scheme", "fp8-meta", "--dry-run").out


def test_gguf(herd: HerdCommand, tiny_folder: Path, tmp_path: Path) -> None:
    result = herd(
        "quantize", str(tiny_folder), str(tmp_path / "out.gguf"), "--scheme", "int4", "--group", "32", "--format", "gguf", "--json"
    )
    assert result.code == 0, result.err
    assert json.loads(result.out)["kind"] == "Q4_0"
    assert herd("verify", str(tmp_path / "out.gguf")).code == 0


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (("--scheme", "int5"), 2, "there is no scheme 'int5'"),
        (("--scheme", "auto"), 2, "auto needs text to calibrate on"),
        (("--scheme", "int4", "--budget", "4bpw"), 2, "a budget is for the scheme auto"),
        (("--scheme", "auto", "--budget", "many"), 2, "a budget of 'many'"),
        (("--scheme", "fp8", "--format", "gguf"), 2, "GGUF holds no fp8 by rtn"),
        (("--scheme", "int8", "--format", "gufg"), 2, "unknown format 'gufg'"),
        (("--scheme", "int8", "--kv-cache", "fp8"), 2, "a cache of fp8 needs text to calibrate on"),
        (("--scheme", "int8", "--kv-cache", "int2"), 2, "there is no cache of 'int2'"),
        (("--report", "page.html"), 2, "--report and --eval go together"),
        (("--scheme", "int4", "--calib", "absent.txt"), 3, "cannot read absent.txt"),
    ],
)
def test_refusals(herd: HerdCommand, tiny_folder: Path, tmp_path: Path, flags: tuple[str, ...], code: int, message: str) -> None:
    result = herd("quantize", str(tiny_folder), str(tmp_path / "out"), *flags)
    assert (result.code, message in result.err) == (code, True), result.err
    assert not (tmp_path / "out").exists()
