"""Two and four processes over gloo give the single process's losses: every dimension of the mesh alone, and combinations."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from mesh_cases import STEPS, plain_losses  # pyright: ignore[reportMissingImports]
from mesh_group import run_cases  # pyright: ignore[reportMissingImports]

FULL = bool(os.environ.get("HERD_TEST_FULL"))

TWO: dict[str, dict[str, Any]] = {
    "fsdp": {"mesh": {"dp_shard": 2}},
    "fsdp, parameters too, recomputing, tied": {"mesh": {"dp_shard": 2, "zero": 3}, "tied": True, "recompute": "full"},
    "tp and sp": {"mesh": {"tp": 2}},
    "interleaved, embedding and head alone, tied": {"mesh": {"pp": 2, "virtual_stages": 2}, "tied": True},
    "cp": {"mesh": {"cp": 2}},
    "cp, document by document": {"mesh": {"cp": 2}, "masks": False},
}
FOUR: dict[str, dict[str, Any]] = {
    "hsdp": {"mesh": {"dp_replicate": 2, "dp_shard": 2}},
    "interleaved and tp": {"mesh": {"pp": 2, "virtual_stages": 2, "tp": 2}},
}
MORE_TWO: dict[str, dict[str, Any]] = {
    "tp, tied, recomputing": {"mesh": {"tp": 2}, "tied": True, "recompute": "selective"},
    "1f1b": {"mesh": {"pp": 2}},
    "gpipe, tied": {"mesh": {"pp": 2, "schedule": "gpipe"}, "tied": True},
    "replicas alone": {"mesh": {"dp_replicate": 2}},
    "interleaved, four layers": {"mesh": {"pp": 2, "virtual_stages": 2}, "layers": 4},
}
MORE_FOUR: dict[str, dict[str, Any]] = {
    "fsdp and tp": {"mesh": {"dp_shard": 2, "tp": 2}},
    "cp and tp, tied": {"mesh": {"cp": 2, "tp": 2}, "tied": True},
    "cp and fsdp": {"mesh": {"cp": 2, "dp_shard": 2, "zero": 3}},
    "interleaved and cp, tied": {"mesh": {"pp": 2, "virtual_stages": 2, "cp": 2}, "tied": True},
    "interleaved and fsdp": {"mesh": {"pp": 2, "virtual_stages": 2, "dp_shard": 2}},
    "cp 4": {"mesh": {"cp": 4}},
    "cp 4 and no mask": {"mesh": {"cp": 4}, "masks": False, "recompute": "selective"},
    "fsdp 4, tied": {"mesh": {"dp_shard": 4}, "tied": True},
}
WHOLE: dict[int, list[dict[str, Any]]] = {2: [{"dp_shard": 2}, {"pp": 2}, {"tp": 2}], 4: [{"pp": 2, "cp": 2}, {"tp": 2, "cp": 2}]}
"""Meshes whose whole logits and exported weights are compared."""


def reference(arguments: dict[str, Any]) -> list[list[float]]:
    return plain_losses(**{name: value for name, value in arguments.items() if name not in ("mesh", "masks")})


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 4])
def test_losses_equal_those_of_one_process(world: int, tmp_path: Path) -> None:
    cases = {2: TWO, 4: FOUR}[world] | ({2: MORE_TWO, 4: MORE_FOUR}[world] if FULL else {})
    jobs = [{"name": name, "run": "train", "arguments": arguments} for name, arguments in cases.items()]
    jobs += [{"name": f"whole {mesh}", "run": "whole", "arguments": {"mesh": mesh, "tied": "pp" in mesh}} for mesh in WHOLE[world]]
    found = run_cases(tmp_path, world, jobs, timeout_s=500)
    for mesh in WHOLE[world]:
        for rank in found:
            assert rank[f"whole {mesh}"]["difference"] < 1e-5, mesh
            assert rank[f"whole {mesh}"]["same"], mesh
    for name, arguments in cases.items():
        ours = found[0][name]["steps"]
        assert all(rank[name] == found[0][name] for rank in found), name
        assert len(ours) == STEPS
        for step, (left, right) in enumerate(zip(ours, reference(arguments), strict=True)):
            # loss, gradient norm, the loss of a source, counted tokens
            assert left == pytest.approx(right, rel=0, abs=1e-5), (name, step)
