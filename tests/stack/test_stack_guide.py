"""What the guide of the Llama Stack's clients says is true: its Python runs from top to bottom, and its TOML is read."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from client_server import LiveServer  # pyright: ignore[reportMissingImports]
from foreign_python import client_python, run_foreign  # pyright: ignore[reportMissingImports]
from mirrored_server import mirrored  # noqa: F401  # pyright: ignore[reportMissingImports]

from herd.inference.providers import load_providers

GUIDES = Path(__file__).resolve().parents[2] / "docs" / "guides"


def test_the_python_of_the_guide_runs(mirrored: LiveServer, tmp_path: Path) -> None:  # noqa: F811
    guide = (GUIDES / "llama-stack.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```py\n(.*?)^```$", guide, re.MULTILINE | re.DOTALL)
    python = client_python("llama-stack-client-0.2.12")
    if subprocess.run([python, "-c", "import openai"], check=False, capture_output=True).returncode:
        pytest.skip("needs openai beside llama-stack-client 0.2.12")
    code = "\n".join(blocks).replace("http://127.0.0.1:8321", mirrored.url)
    out = run_foreign([python, "-c", code], tmp_path, {}).splitlines()
    assert out[0] == "cria herd" and "content_filter injection ['jailbreak']" in out
    assert "error" in out and "{'threshold': 0.3}" in out and "[False, True]" in out and "builtin::clock" in out
    assert out[-1] == "pmpt_ ['word', 'language']"


def test_the_toml_of_the_guide_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    guide = (GUIDES / "providers.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```toml\n(.*?)^```$", guide, re.MULTILINE | re.DOTALL)
    (tmp_path / "herd.toml").write_text(block)
    monkeypatch.chdir(tmp_path)
    assert [(provider.name, [model.id for model in provider.models]) for provider in load_providers()] == [
        ("lab", ["meta-llama/Llama-3.1-70B-Instruct"]),
        ("hosted", ["gpt-4o-mini"]),
    ]
