"""The model picker: what answers, with its state and memory, and what else lies on the server's machine."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from browser import Reader  # pyright: ignore[reportMissingImports]
from live_server import model_folder  # pyright: ignore[reportMissingImports]
from playwright.sync_api import expect

Open = Callable[..., Reader]


def test_the_model_picker_tells_state_size_and_memory(open_page: Open) -> None:
    reader = open_page()
    reader.page.locator(".bar .model").click()
    card = reader.page.get_by_role("radio", name="tiny")
    expect(card).to_be_checked()
    expect(card).to_contain_text(re.compile(r"Ready|ready"))
    expect(card).to_contain_text("parameters")
    expect(card).to_contain_text("context 16,384")
    expect(card).to_contain_text(re.compile(r"takes .* more are free"))


def test_the_picker_lists_what_lies_on_disk_with_the_command_that_serves_it(
    open_page: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HERD_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    shutil.copytree(model_folder(), tmp_path / "models" / "lab" / "mine")
    (tmp_path / "models" / "damaged.gguf").write_bytes(b"12345")
    reader = open_page()
    page = reader.page
    page.locator(".bar .model").click()
    rows = page.get_by_role("list", name="Also on this machine").get_by_role("listitem")
    mine = rows.filter(has_text="lab/mine")
    expect(mine).to_contain_text("on disk")
    expect(mine).to_contain_text(re.compile(r"parameters · float32 · context 16,384 · needs \d+ MiB: fits beside this server"))
    expect(mine.locator("code")).to_have_text(re.compile(rf"^herd serve lab/mine --port {reader.server.port + 1} --state-dir \S+$"))
    mine.get_by_role("button", name="Copy").click()
    expect(mine).to_contain_text("Copied")
    # What cannot be served says why, and offers no command.
    damaged = rows.filter(has_text="damaged.gguf")
    expect(damaged).to_contain_text("5 B on disk")
    expect(damaged.locator("code")).to_have_count(0)
    assert rows.filter(has_text="cria-guard").count() == 1
