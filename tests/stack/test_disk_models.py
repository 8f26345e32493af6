"""Models on the server's machine, as they are told: to whoever runs it, each with the command that serves it where there is room."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from scripted_app import Script, scripted  # pyright: ignore[reportMissingImports]

from herd.inference.on_disk import DiskModel
from herd.stack import disk_models
from herd.stack.disk_models import model_row
from herd.stack.keys import ApiKey, digest_of

GIB = 2**30
ROUTE = "/v1/herd/models"


def disk_model(name: str = "mine", **more: Any) -> DiskModel:
    facts: dict[str, Any] = {
        "size_bytes": 6 * GIB,
        "num_parameters": 3_000_000_000,
        "dtype": "bfloat16",
        "context": 131_072,
        "needs_bytes": 10 * GIB,
        "fixed_bytes": 7 * GIB,
        "token_bytes": 2**15,
    }
    return DiskModel(**{"name": name, "path": f"/models/{name}", **facts, **more})


@pytest.mark.parametrize(
    ("free", "own", "fit", "command"),
    [
        (11 * GIB, GIB, "beside", "herd serve mine --port 8322 --state-dir /home/x/server-8322"),
        (9 * GIB, 2 * GIB, "instead", "herd serve mine"),
        (7 * GIB, GIB, "instead", "herd serve mine --memory 8192MiB --context 31744"),
        (5 * GIB, GIB, "no", None),
        (7 * GIB, None, "no", None),
        (None, GIB, None, "herd serve mine"),
    ],
)
def test_the_command_serves_the_model_where_there_is_room(
    monkeypatch: pytest.MonkeyPatch, free: int | None, own: int | None, fit: str | None, command: str | None
) -> None:
    monkeypatch.setattr(disk_models, "server_dir", lambda: Path("/home/x/server"))
    row = model_row(disk_model(), free=free, own=own, port=8321)
    assert (row["state"], row["fit"], row["command"]) == ("on disk", fit, command)
    assert "token_bytes" not in row and row["size_bytes"] == 6 * GIB


def test_what_is_loaded_or_broken_has_no_command_and_names_are_quoted() -> None:
    loaded = model_row(disk_model(), free=99 * GIB, own=None, port=1, loaded=True)
    assert (loaded["state"], loaded["command"]) == ("loaded", None)
    broken = DiskModel(name="x", path="/x", size_bytes=1, problem="it is damaged")
    assert model_row(broken, free=99 * GIB, own=None, port=1) | {"command": None, "fit": None} == model_row(
        broken, free=None, own=None, port=1
    )
    spaced = model_row(disk_model("my model; rm"), free=None, own=None, port=1)
    assert spaced["command"] == "herd serve 'my model; rm'"


def test_only_an_admins_key_may_look_and_checkpoints_are_read_again_only_when_they_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, chief = "key-of-anna-0123456789", "key-of-the-chief-0123456789"
    keys = (ApiKey(name="anna", digest=digest_of(key)), ApiKey(name="chief", digest=digest_of(chief), admin=1))
    reads: list[int] = []
    seen = ["one"]

    def read() -> list[DiskModel]:
        reads.append(1)
        return [disk_model()]

    monkeypatch.setattr(disk_models, "_read", read)
    monkeypatch.setattr(disk_models, "_seen", lambda: list(seen))
    monkeypatch.setattr(disk_models, "available_memory", lambda: 64 * GIB)

    async def main() -> None:
        engine = Script("Hi.")
        engine.info |= {"device": "cpu", "total_bytes": GIB}
        async with scripted(engine, tmp_path, keys=keys) as app:
            refused = await app.http.get(ROUTE, headers={"Authorization": f"Bearer {key}"})
            assert refused.status_code == 403 and "'anna' may not see" in refused.json()["error"]["message"]
            told = (await app.http.get(ROUTE, headers={"Authorization": f"Bearer {chief}"})).json()
            assert (told["free_bytes"], told["served_bytes"]) == (64 * GIB, GIB)
            assert [(row["name"], row["fit"]) for row in told["data"]] == [("mine", "beside")]
            await app.http.get(ROUTE, headers={"Authorization": f"Bearer {chief}"})
            assert len(reads) == 1
            seen.append("two")
            await app.http.get(ROUTE, headers={"Authorization": f"Bearer {chief}"})
            assert len(reads) == 2

    asyncio.run(main())


def test_a_reader_that_fails_is_told_and_nothing_made_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(disk_models, "_seen", list)
    monkeypatch.setattr(disk_models.sys, "executable", str(tmp_path / "no-python"))

    async def main() -> None:
        async with scripted(Script("Hi."), tmp_path) as app:
            answer = await app.http.get(ROUTE)
            assert answer.status_code == 409 and "could not be read" in answer.json()["error"]["message"]

    asyncio.run(main())
