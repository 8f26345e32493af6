"""Clients of the Llama Stack, unchanged, each in its own Python: 0.2.12, 0.3.5, 0.7.5, and ogx-client 1.5."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from client_server import LiveServer  # pyright: ignore[reportMissingImports]
from foreign_python import CLIENTS, client_python, run_foreign  # pyright: ignore[reportMissingImports]
from mirrored_server import mcp_peer_url, mirrored  # noqa: F401  # pyright: ignore[reportMissingImports]

from herd.version import __version__

SCRIPT = Path(__file__).with_name("llama_client_script.py")
BUILTIN = ["harm", "injection", "code-shield", "secrets", "pii"]


def told_by(name: str, server: LiveServer, peer: str, folder: Path) -> dict[str, Any]:
    out = run_foreign([client_python(name), str(SCRIPT), server.url, peer], folder, {})
    return json.loads(out.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("name", list(CLIENTS))
def test_a_client_is_told_the_same_by_every_route_it_knows(name: str, mirrored: LiveServer, mcp_peer_url: str, tmp_path: Path) -> None:  # noqa: F811
    told = told_by(name, mirrored, mcp_peer_url, tmp_path)
    assert told["models"] == ["cria", "mirror/cria", "gone/nothing"] and told["model"] == "cria"
    providers = {"herd": ["inference", "OK"], "herd-safety": ["safety", "OK"], "herd-tools": ["tool_runtime", "OK"]}
    assert told["providers"] == {**providers, "mirror": ["inference", "OK"], "gone": ["inference", "Error"]}
    assert told["provider"] == "inline::herd" and told["health"] == "OK" and told["version"] == __version__
    assert told["chat"] == told["chat stream"] != "" and told["completion"] and told["embedding"] == 2
    if name.startswith("ogx"):
        return
    assert told["remote chat"] == told["chat"] and told["model provider"] == "herd" and told["model type"] == "llm"
    assert told["blocked"] == "content_filter" and told["routes"] > 30
    _check_safety(told)
    if "toolgroups" in told:
        _check_tools(told, mcp_peer_url)
    if "old chat" in told:
        assert told["old chat"] == told["old chat stream"] == told["chat"]
        assert told["old completion"] == told["old completion stream"] and told["old batch"] == [told["old completion"]] * 2
        assert told["old embeddings"] == 2 and told["old call"] == [["get_weather", ["city"]]]
    if "prompt" in told:
        assert told["prompt"] == [1, ["word"]] and told["prompt 2"] == 2 and told["prompts"] == ["Sing {{ word }}."]
        assert told["prompt versions"] == [1, 2] and told["prompt 1"] == "Say {{ word }}." and told["prompt gone"]
    expected = {"0.2.12": {"old chat", "toolgroups"}, "0.3.5": {"toolgroups", "moderation"}, "0.7.5": {"moderation", "prompt"}}
    assert expected[name.rpartition("-")[2]] <= set(told), "a group that this client has was not asked for"


def _check_safety(told: dict[str, Any]) -> None:
    assert told["shields"][:5] == BUILTIN and told["shield"] == "harm"
    violation = told["violation"]["violation"]
    assert violation["violation_level"] == "error" and violation["metadata"]["violation_type"] == "jailbreak"
    assert told["no violation"]["violation"] is None
    assert told.get("moderation", [True, False]) == [True, False] and told.get("shield gone", True)


def _check_tools(told: dict[str, Any], peer: str) -> None:
    assert {"builtin::clock", "builtin::fetch"} <= set(told["toolgroups"]) and told["toolgroup"] == peer
    assert "peer__add" in told["tools"] and told["listed"] == told["tools"] and told["clock"] == "builtin::clock"
    assert "UTC" in told["invoked"] and told["invoked mcp"] == "5" and told["wrong arguments"] == 400 and told["toolgroup gone"]
