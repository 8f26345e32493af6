"""What the guide of the server says is true: its Python runs against a real server, and every metric that it names is there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import httpx
import pytest
from client_server import LiveServer  # pyright: ignore[reportMissingImports]

GUIDE = (Path(__file__).resolve().parents[2] / "docs" / "guides" / "serving.md").read_text(encoding="utf-8")


def test_the_python_of_the_guide_runs_from_top_to_bottom(live_server: LiveServer, capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {}
    try:
        for number, body in enumerate(re.findall(r"^```py\n(.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL), start=1):
            code = body.replace("http://127.0.0.1:8321", live_server.url)
            exec(compile(code, f"serving.md, block {number}", "exec"), names)
    finally:
        names["client"].close()
    out = capsys.readouterr().out
    assert "get_weather" in out and "legs=" in out and "completed BatchRequestCounts" in out


def test_the_metrics_of_the_guide_are_those_of_the_server(live_server: LiveServer) -> None:
    told = set(re.findall(r"herd_\w+", GUIDE.partition("## Metrics")[2].partition("## Evaluate")[0]))
    there = httpx.get(live_server.url + "/metrics").text
    families = {line.split()[2] for line in there.splitlines() if line.startswith("# TYPE ")}
    families |= {name.removesuffix("_info") + "_info" for name in families if name.endswith("_info")}
    shown = {name for name in families if not name.endswith("_created")}
    assert told == shown


def test_every_route_of_the_guide_is_there_and_every_route_is_in_the_guide(live_server: LiveServer) -> None:
    routes = set(httpx.get(live_server.url + "/openapi.json").json()["paths"])
    missing = [route for route in routes if not any(route.startswith(told) for told in re.findall(r"`(?:GET |POST )?(/[\w/-]+)`", GUIDE))]
    assert not missing
