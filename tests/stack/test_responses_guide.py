"""What the guide of responses says is true: its Python runs against a real server, and its routes and events are those that there are."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import httpx
import pytest
from client_server import LiveServer  # pyright: ignore[reportMissingImports]

GUIDE = (Path(__file__).resolve().parents[2] / "docs" / "guides" / "responses.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_python_of_the_guide_runs_from_top_to_bottom(live_server: LiveServer, capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {}
    try:
        for number, body in enumerate(re.findall(r"^```py\n(.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL), start=1):
            code = body.replace("http://127.0.0.1:8321", live_server.url)
            exec(compile(code, f"responses.md, block {number}", "exec"), names)
    finally:
        names["client"].close()
    out = capsys.readouterr().out
    assert "get_weather" in out and "legs=" in out and "user My name is Ann." in out
    assert "file_search_call herd.txt" in out


def test_the_routes_of_the_guide_are_those_of_the_server(live_server: LiveServer) -> None:
    paths = httpx.get(live_server.url + "/openapi.json").json()["paths"]
    there = {path for path in paths if path.startswith(("/v1/responses", "/v1/conversations"))}
    named = {re.sub(r"\{(response|conversation)_id\}", "{id}", path) for path in there}
    told = set(re.findall(r"(/v1/(?:responses|conversations)[\w/{}]*)", GUIDE.partition("## Routes")[2]))
    assert told == named
