"""A file of requests: answers as `LLM` gives them, errors that stop nothing, and runs that are killed and go on."""

from __future__ import annotations

import json
import multiprocessing
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from herd.base.errors import FormatError, NotFoundError, UsageError
from herd.inference.batch_output import BatchOutput
from herd.inference.llm import LLM
from herd.inference.params import SamplingParams

GREEDY = SamplingParams(temperature=0.0, max_tokens=6)


def written(path: Path, entries: list[Any]) -> Path:
    path.write_text("".join((entry if isinstance(entry, str) else json.dumps(entry)) + "\n" for entry in entries), encoding="utf-8")
    return path


def answers(path: Path) -> dict[int, Any]:
    """The answers by line; each line has one at most."""
    found = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert len({entry["line"] for entry in found}) == len(found)
    return {entry["line"]: entry for entry in found}


def test_lines_are_answered_as_each_alone(tiny_llm: LLM, tmp_path: Path) -> None:
    drawn = SamplingParams(temperature=1.0, top_p=1.0, max_tokens=7, seed=3)
    source = written(
        tmp_path / "in.jsonl",
        [
            {"custom_id": "a", "prompt": "The wind"},
            {"custom_id": "é", "messages": [{"role": "user", "content": "Hi"}], "temperature": 1, "top_p": 1, "max_tokens": 7, "seed": 3},
            "",
            {
                "custom_id": "c",
                "method": "POST",
                "url": "/v1/completions",
                "body": {
                    "model": "x",
                    "prompt": "The sun",
                    "n": 2,
                    "temperature": 1.0,
                    "top_p": 1.0,
                    "max_completion_tokens": 7,
                    "seed": 3,
                },
            },
            {"prompt": [300, 1, 2], "stop": None, "logit_bias": {"65": 1}},
        ],
    )
    report = tiny_llm.run_file(source, tmp_path / "out.jsonl", GREEDY)
    assert (report.num_lines, report.num_before, report.num_answered, report.num_failed) == (4, 0, 4, 0)
    found = answers(tmp_path / "out.jsonl")
    assert [found[line]["custom_id"] for line in (1, 2, 4, 5)] == ["a", "é", "c", "line-5"]
    ids = {line: [tuple(output["token_ids"]) for output in entry["outputs"]] for line, entry in found.items()}
    assert ids[1] == [tiny_llm.generate("The wind", GREEDY).token_ids]
    assert ids[2] == [tiny_llm.chat([{"role": "user", "content": "Hi"}], drawn).token_ids]
    assert ids[4] == [output.token_ids for output in tiny_llm.generate("The sun", drawn, n=2)]
    assert tiny_llm.inference.engine.scheduler.pool.num_references == 0


BAD = {
    "{": "not JSON",
    "[1]": "the line is",
    '{"prompt": "a", "tempratur": 1}': "unknown field 'tempratur'",
    '{"custom_id": "x"}': "either messages or a prompt",
    '{"prompt": "a", "messages": []}': "either messages or a prompt",
    '{"prompt": "a", "temperature": "hot"}': "temperature is",
    '{"prompt": "a", "temperature": -1}': "temperature is -1",
    '{"prompt": "a", "banned_token_ids": [1, "b"]}': "an entry of banned_token_ids",
    '{"prompt": "a", "logit_bias": {"x": 1}}': "logit_bias",
    '{"prompt": "a", "n": 0}': "n is 0",
    '{"prompt": "a", "tools": []}': "goes with messages",
    '{"prompt": [1, 99999]}': "99999",
    '{"messages": ["x"]}': "an entry of messages",
    '{"messages": [{"role": "nobody", "content": "x"}]}': "nobody",
    '{"messages": [{"role": "user", "content": "x"}], "response_format": {"type": "xml"}}': "xml",
    '{"prompt": "a", "grammar": {"regex": "("}}': "",
    '{"url": "/v1/embeddings", "body": {"prompt": "a"}}': "/v1/embeddings",
    '{"body": {"prompt": "a"}, "prompt": "b"}': "beside the body",
    json.dumps({"prompt": "herd " * 2000}): "no room",
}


def test_a_line_that_cannot_be_answered_gets_its_error_and_stops_nothing(tiny_llm: LLM, tmp_path: Path) -> None:
    lines = [line for bad in BAD for line in (bad, '{"prompt": "The wind"}')]
    report = tiny_llm.run_file(written(tmp_path / "in.jsonl", lines), tmp_path / "out.jsonl", GREEDY, window=3)
    assert (report.num_answered, report.num_failed) == (len(BAD), len(BAD))
    found = answers(tmp_path / "out.jsonl")
    for number, words in enumerate(BAD.values()):
        error = found[2 * number + 1]["error"]
        assert words in error["message"] and error["hint"] and error["code"]
        assert "outputs" in found[2 * number + 2]


def test_answers_that_follow_a_grammar(tiny_llm: LLM, tmp_path: Path) -> None:
    schema = {"type": "object", "properties": {"a": {"enum": ["x", "y"]}}, "required": ["a"]}
    message = [{"role": "user", "content": "x"}]
    shape = {"type": "json_schema", "json_schema": {"name": "s", "schema": schema}}
    source = written(
        tmp_path / "in.jsonl",
        [
            {"messages": message, "response_format": shape, "max_tokens": 60},
            {"prompt": "a", "grammar": {"choice": ["red", "blue"]}, "max_tokens": 20},
        ],
    )
    tiny_llm.run_file(source, tmp_path / "out.jsonl", GREEDY)
    found = answers(tmp_path / "out.jsonl")
    assert json.loads(found[1]["outputs"][0]["text"])["a"] in ("x", "y")
    assert found[2]["outputs"][0]["text"] in ("red", "blue")


def test_a_second_run_does_what_is_left_and_a_torn_line_is_done_again(tiny_llm: LLM, tmp_path: Path) -> None:
    source = written(tmp_path / "in.jsonl", [{"custom_id": str(number), "prompt": f"The {number}"} for number in range(20)])
    target = tmp_path / "out.jsonl"
    tiny_llm.run_file(source, target, GREEDY)
    whole = target.read_bytes()
    lines = whole.splitlines(keepends=True)
    for kept, torn in ((5, 30), (19, 1), (0, 3), (20, 0)):
        target.write_bytes(b"".join(lines[:kept]) + lines[min(kept, 19)][:torn])
        report = tiny_llm.run_file(source, target, GREEDY)
        assert (report.num_before, report.num_answered) == (kept, 20 - kept)
        assert target.read_bytes().startswith(b"".join(lines[:kept]))
        assert len(answers(target)) == 20


def test_files_that_do_not_belong_together_are_refused_and_left_alone(tiny_llm: LLM, tmp_path: Path) -> None:
    source = written(tmp_path / "in.jsonl", [{"custom_id": "a", "prompt": "The"}])
    target = tmp_path / "out.jsonl"
    for foreign, words in (
        (b"notes\nof mine", "line 1 is not of a batch"),
        (b"notes", "line 1"),
        (b'{"custom_id": "z", "line": 1}\n', "'a'"),
    ):
        target.write_bytes(foreign)
        with pytest.raises(FormatError, match=words):
            tiny_llm.run_file(source, target)
        assert target.read_bytes() == foreign
    with pytest.raises(UsageError, match="both input and output"):
        tiny_llm.run_file(source, source)
    with pytest.raises(NotFoundError):
        tiny_llm.run_file(tmp_path / "none", target)
    target.unlink()
    with BatchOutput(target), pytest.raises(UsageError, match="another run writes"):
        tiny_llm.run_file(source, target)


def test_no_more_than_a_window_is_in_flight(tiny_llm: LLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = written(tmp_path / "in.jsonl", [{"prompt": f"The {number}", "max_tokens": 1 + number % 5} for number in range(40)])
    scheduler, most = tiny_llm.inference.engine.scheduler, 0
    step = tiny_llm.inference.engine.stepper.step

    def counted() -> bool:
        nonlocal most
        most = max(most, len(scheduler.sequences))
        return step()

    monkeypatch.setattr(tiny_llm.inference.engine.stepper, "step", counted)
    tiny_llm.run_file(source, tmp_path / "out.jsonl", GREEDY, window=4)
    assert most == 4 and len(answers(tmp_path / "out.jsonl")) == 40


def run(folder: Path, source: Path, target: Path) -> None:
    """What a process does."""
    LLM(folder, device="cpu").run_file(source, target, GREEDY, window=8)


def test_a_run_that_is_killed_again_and_again_ends_as_one_that_was_left_alone(tiny_llm: LLM, tiny_folder: Path, tmp_path: Path) -> None:
    entries = [{"custom_id": f"n{number}", "prompt": f"The herd {number}", "max_tokens": 3 + number % 30} for number in range(300)]
    source, target = written(tmp_path / "in.jsonl", entries), tmp_path / "out.jsonl"
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pytest", "herd.inference.llm"])
    kept, kills = b"", 0
    for _ in range(30):
        process = context.Process(target=run, args=(tiny_folder, source, target))
        process.start()
        while process.is_alive() and (not target.exists() or target.stat().st_size <= len(kept)):
            time.sleep(0.005)
        process.join(random.Random(kills).random() * 0.06)
        process.kill()
        process.join()
        found = target.read_bytes()
        whole = found[: found.rfind(b"\n") + 1]
        assert whole.startswith(kept), "a finished line was lost"
        kept = whole
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
        kills += 1
    else:
        tiny_llm.run_file(source, target, GREEDY)
    assert kills > 2
    found = answers(target)
    tiny_llm.run_file(source, tmp_path / "alone.jsonl", GREEDY)
    alone = answers(tmp_path / "alone.jsonl")
    assert len(found) == 300
    assert all(found[line]["outputs"][0]["token_ids"] == alone[line]["outputs"][0]["token_ids"] for line in alone)
