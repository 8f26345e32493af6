"""`herd chat --base-url`: a conversation with a model of any OpenAI-compatible server, over a real wire."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from herd_command import HerdCommand  # pyright: ignore[reportMissingImports]

from scripted_provider import ScriptedProvider, answer_to  # pyright: ignore[reportMissingImports]

KEY = "key-of-a-server-0123456789"


@pytest.fixture(scope="module", name="provider")
def provider_fixture() -> Iterator[ScriptedProvider]:
    made = ScriptedProvider(KEY)
    yield made
    made.close()


def test_the_first_model_of_the_server_answers_and_is_told_of(herd: HerdCommand, provider: ScriptedProvider, tmp_path: Path) -> None:
    lines = "One?\n/show\nTwo?\n/stats\n/save talk.json\n/model\n"
    result = herd("chat", "--base-url", provider.url, "--api-key", KEY, stdin=lines)
    assert result.code == 0 and result.out.split() == [*answer_to("One?").split(), *answer_to("Two?").split()]
    assert f"script: at {provider.url}, context 4,096 tokens. /help" in result.err and KEY not in result.err
    assert "context 25 of 4,096]" in result.err and "messages: 2; context: 25 of 4,096 tokens" in result.err
    assert "answers: 2; tokens read: 20" in result.err
    talk = json.loads((tmp_path / "talk.json").read_text())
    assert talk["model"] == "script" and [one["role"] for one in talk["messages"]] == ["user", "assistant"] * 2


def test_the_key_may_come_by_its_variable_and_the_model_by_name(
    herd: HerdCommand, provider: ScriptedProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HERD_API_KEY", KEY)
    result = herd("chat", "--base-url", provider.url, "--model", "other", stdin="/show\nHi\n/model script\n")
    assert result.code == 0 and result.out.split() == answer_to("Hi").split()
    assert f"model: other, at {provider.url}\n" in result.err and "messages: 0; context: 0 tokens" in result.err
    assert f"model: script, at {provider.url}, context 4,096 tokens" in result.err


def test_what_is_wrong_is_told(herd: HerdCommand, provider: ScriptedProvider, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HERD_API_KEY", raising=False)
    refused = herd("chat", "--base-url", provider.url, stdin="Hi\n")
    assert refused.code == 1 and "refused the key (401)" in refused.err and "HERD_API_KEY" in refused.err and refused.out == ""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        nowhere = herd("chat", "--base-url", f"http://127.0.0.1:{closed.getsockname()[1]}/v1", stdin="Hi\n")
    assert nowhere.code == 1 and "cannot be reached" in nowhere.err
    for words, told in (
        (("--api-key", "k"), "--api-key is for a server, and none is named"),
        (("--base-url", provider.url, "--threads", "1"), "--threads is for a model on this machine"),
        (("--base-url", "ftp://x"), "base_url"),
    ):
        wrong = herd("chat", *words, stdin="")
        assert wrong.code in (1, 2) and told in wrong.err, wrong.err
