"""What is said of packed weights and what is deleted; and what a model of packed weights refuses."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from small_model import small_model  # pyright: ignore[reportMissingImports]

from herd.base.errors import UsageError
from herd.checkpoint.load import save_model
from herd.cli.app import run
from herd.engine.packed import cache, listing
from herd.engine.packed.file import MAGIC, VERSION
from herd.engine.packed.weights import PackedModel
from herd.kernels import dispatch
from herd.quant.run import quantise_checkpoint
from herd.quant.schemes import Settings

pytestmark = pytest.mark.skipif(dispatch.choice().library is None, reason="the C kernels do not run here")


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("listed")
    save_model(small_model(torch.bfloat16), folder / "whole")
    for scheme in ("int8", "w8a8"):
        quantise_checkpoint(folder / "whole", folder / scheme, Settings(scheme=scheme))
    return folder


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("HERD_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("HERD_PACKED_BYTES", raising=False)
    yield


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    capsys.readouterr()
    assert run(["cache", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_listed_and_cleared(checkpoints: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert told(capsys, "list")["files"] == []
    for scheme in ("int8", "w8a8"):
        assert isinstance(cache.load_for_engine(checkpoints / scheme), PackedModel)
    old = next(item for item in listing.kept() if item.model == "int8")
    os.utime(old.path, (old.path.stat().st_mtime - 3 * 86_400,) * 2)
    found = told(capsys, "list")
    assert [(item["model"], item["folder"], item["stale"]) for item in found["files"]] == [
        (scheme, str((checkpoints / scheme).resolve()), None) for scheme in ("w8a8", "int8")
    ]
    assert found["size_bytes"] == sum(path.stat().st_size for path in cache.packed_dir().glob("*.herdpack"))
    assert run(["cache", "list"]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert rows[0].split()[:2] == ["model", "size"] and "3 days ago" in rows[2] and "ready" in rows[2]
    assert told(capsys, "prune", "--older-than", "2", "--dry-run") == {"deleted": [], "would_delete": 1, "size_bytes": old.size_bytes}
    assert old.path.exists()
    assert [item["model"] for item in told(capsys, "prune", "--older-than", "2")["deleted"]] == ["int8"]
    assert told(capsys, "prune", "--to", "0")["would_delete"] == 1
    cache.load_for_engine(checkpoints / "int8")
    assert [item["model"] for item in told(capsys, "clear")["deleted"]] == ["int8"]
    assert list(cache.packed_dir().iterdir()) == []


def test_what_is_stale_goes_first(checkpoints: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(checkpoints / "int8", tmp_path / "gone")
    cache.load_for_engine(tmp_path / "gone")
    shutil.rmtree(tmp_path / "gone")
    folder = cache.packed_dir()
    (folder / "short.herdpack").write_bytes(b"HERD")
    (folder / "other.herdpack").write_bytes(b"x" * 100)
    (folder / "huge.herdpack").write_bytes(struct.pack("<8sII32s", MAGIC, VERSION, 2**31, b"\0" * 32))
    header = json.dumps({"facts": {"of": "old"}, "layout": "0.0", "size": 0, "sections": []}).encode()
    (folder / "older.herdpack").write_bytes(struct.pack("<8sII32s", MAGIC, VERSION, len(header), hashlib.sha256(header).digest()) + header)
    cache.load_for_engine(checkpoints / "w8a8")
    reasons = {item.name: item.stale for item in listing.kept() if item.stale}
    assert reasons["short"].startswith("damaged: 4 bytes") and reasons["other"].startswith("damaged: it begins with")
    assert reasons["huge"] == "damaged: its header is to have 2,147,483,648 bytes"
    assert reasons["older"] == "written by another herd"
    assert sorted(reasons.values())[-1] == "written by another herd" and "its checkpoint is gone" in reasons.values()
    assert told(capsys, "prune")["would_delete"] == 5
    assert [item.model for item in listing.kept()] == ["w8a8"]


def test_a_model_of_packed_weights_says_what_it_cannot(checkpoints: Path, tmp_path: Path) -> None:
    model = cache.load_for_engine(checkpoints / "int8")
    assert isinstance(model, PackedModel)
    with pytest.raises(UsageError, match="packed for the engine's kernels: it generates, and does nothing else"):
        model(torch.zeros(1, 2, dtype=torch.long))
    with pytest.raises(UsageError, match=r"holds no numbers of \d+ tensors, model\.embed_tokens\.weight the first"):
        save_model(model, tmp_path / "again")
    assert not (tmp_path / "again").exists()
