"""A run that goes from mesh to mesh, and through one process, ends as the run of one process does; a resume on one mesh is bit-exact."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from mesh_cases import plain_trainer  # pyright: ignore[reportMissingImports]
from mesh_group import run_cases  # pyright: ignore[reportMissingImports]
from small_run import log_of  # pyright: ignore[reportMissingImports]

from herd.train.parallel.trainer import ReplicasDifferError, check_replicas
from herd.train.state import find_state

FULL = bool(os.environ.get("HERD_TEST_FULL"))


def relay(place: Path, mesh: dict[str, Any], until: int) -> dict[str, Any]:
    arguments = {"mesh": mesh, "place": str(place), "until": until}
    return {"name": f"{mesh} to {until}", "run": "relay", "arguments": arguments}


def losses(folder: Path) -> list[dict[str, Any]]:
    return [record for record in log_of(folder) if "loss" in record]


def assert_same_log(ours: Path, plain: Path) -> None:
    left, right = log_of(ours), log_of(plain)
    assert [record.keys() for record in left] == [record.keys() for record in right]
    for a, b in zip(left, right, strict=True):
        for name in ("loss", "grad_norm", "num_counted", "lr", "step"):
            assert a.get(name) == (b.get(name) if b.get(name) is None else pytest.approx(b[name], abs=1e-5, rel=0)), (a["step"], name)
        assert a.get("heldout", {}) == pytest.approx(b.get("heldout", {}), abs=2e-4)


@pytest.mark.slow
def test_a_run_goes_from_mesh_to_mesh_and_through_one_process(tmp_path: Path) -> None:
    plain = plain_trainer(tmp_path / "plain", tied=True, until=8)
    place = tmp_path / "relayed"
    plain_trainer(place, tied=True, until=1)
    cases = [relay(place, {"dp_shard": 2, "zero": 3}, 2), relay(place, {"tp": 2}, 3), relay(place, {"pp": 2, "virtual_stages": 2}, 5)]
    cases += [relay(place, {"cp": 2}, 6), relay(place, {"dp_replicate": 2}, 7)]
    interrupted = {"mesh": {"dp_shard": 2}, "place": str(tmp_path / "interrupted")}
    cases.append({"name": "interrupted", "run": "interrupted", "arguments": interrupted})
    for name in ("stopped", "unsaved"):
        cases.append({"name": name, "run": name, "arguments": {"mesh": {"dp_shard": 2}, "place": str(tmp_path / name)}})
    found = run_cases(tmp_path / "two", 2, cases, timeout_s=300)
    assert all(rank["stopped"] == {"step": 3, "code": 75, "newest": "step-00000003"} for rank in found)
    assert all(rank["unsaved"] == {"failures": 0, "kept": ["step-00000002", "step-00000005"]} for rank in found)
    assert all(rank["interrupted"] == {"same": True, "count": 2} for rank in found)
    damaged = shutil.copytree(place, tmp_path / "damaged")
    newest = find_state(place / "states")
    assert newest is not None
    assert newest[1]["pieces"] == 2
    last = plain_trainer(place, tied=True, until=8)
    assert_same_log(place, tmp_path / "plain")
    for (name, ours), (_, theirs) in zip(last.model.named_parameters(), plain.model.named_parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0, msg=name)

    check_damage(damaged)


def check_damage(place: Path) -> None:
    """A flipped bit in one rank's piece: the state before it is taken, by one process too."""
    piece = sorted((place / "states" / "step-00000007").glob("model-*.safetensors"))[-1]
    content = bytearray(piece.read_bytes())
    content[-5] ^= 1
    piece.write_bytes(bytes(content))
    found = find_state(place / "states")
    assert found is not None
    assert found[1]["step"] == 6
    plain_trainer(place, tied=True, until=8)
    assert [record["step"] for record in losses(place)] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert not (place / "states" / "step-00000007").exists()


@pytest.mark.slow
@pytest.mark.skipif(not FULL, reason="HERD_TEST_FULL=1 runs every mesh of four after every other")
def test_four_processes_relay_over_every_combination(tmp_path: Path) -> None:
    plain_trainer(tmp_path / "plain", tied=True, until=8)
    place = tmp_path / "relayed"
    meshes = [
        {"dp_shard": 2, "tp": 2},
        {"pp": 2, "virtual_stages": 2, "tp": 2},
        {"cp": 2, "dp_shard": 2},
        {"dp_replicate": 2, "dp_shard": 2},
        {"dp_shard": 4, "zero": 3},
        {"cp": 2, "tp": 2},
        {"pp": 2, "dp_shard": 2},
        {"tp": 4},
    ]
    run_cases(tmp_path / "four", 4, [relay(place, mesh, step + 1) for step, mesh in enumerate(meshes)], timeout_s=500)
    assert_same_log(place, tmp_path / "plain")


def test_a_replica_that_differs_is_named() -> None:
    places = [{"dp_replicate": n, "dp_shard": s, "pp": 0, "cp": 0, "tp": 0} for n in range(3) for s in range(2)]
    same = [(place, f"hash of shard {place['dp_shard']}") for place in places]
    check_replicas(same)
    same[3] = (places[3], "another")
    with pytest.raises(ReplicasDifferError, match="ranks 3 are not"):
        check_replicas(same)
