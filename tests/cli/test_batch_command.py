"""`herd batch`: answers into a file, a report on stdout, refusals before the model is loaded."""

from __future__ import annotations

import json
from pathlib import Path

from herd_command import HerdCommand  # pyright: ignore[reportMissingImports]


def test_a_file_is_answered_and_counted(herd: HerdCommand, tiny_folder: Path, tmp_path: Path) -> None:
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text('{"custom_id": "a", "prompt": "The herd"}\n{"prompt": 1}\n', encoding="utf-8")
    result = herd("batch", str(source), str(target), "--model", str(tiny_folder), "--max-tokens", "3", "--json")
    assert result.code == 0
    assert result.json == {"num_lines": 2, "num_before": 0, "num_answered": 1, "num_failed": 1}
    first = next(entry for entry in map(json.loads, target.read_text(encoding="utf-8").splitlines()) if entry["custom_id"] == "a")
    assert first["outputs"][0]["usage"]["completion_tokens"] == 3
    again = herd("batch", str(source), str(target), "--model", str(tiny_folder))
    assert again.code == 0 and not again.out and "2 were there before" in again.err


def test_an_input_that_is_not_there_is_refused(herd: HerdCommand, tmp_path: Path) -> None:
    message, _ = herd("batch", str(tmp_path / "none"), str(tmp_path / "out"), "--model", "no-such-model").refusal(3)
    assert "there is no file" in message
