"""Meshes that cannot be are refused with the value and the way out; ranks are numbered as the paper has it."""

from __future__ import annotations

from typing import Any

import pytest
from mesh_cases import mesh_config  # pyright: ignore[reportMissingImports]

from herd.base.errors import ConfigError
from herd.model.presets import preset
from herd.train.parallel.config import ParallelConfig
from herd.train.parallel.model import chunk_layers


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tp": 0}, "parallel.tp is 0"),
        ({"zero": 1}, "parallel.zero is 1"),
        ({"timeout_s": 0.0}, "parallel.timeout_s is 0"),
        ({"virtual_stages": 2}, "without a pipeline"),
        ({"pp": 2, "virtual_stages": 2, "schedule": "gpipe"}, "gpipe runs one chunk"),
        ({"pp": 2, "schedule": "interleaved"}, "needs several chunks"),
    ],
)
def test_what_cannot_be_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as raised:
        ParallelConfig(**changes)
    assert raised.value.hint


def test_a_mesh_that_the_model_cannot_have() -> None:
    with pytest.raises(ConfigError, match="tp 3 does not divide"):
        ParallelConfig(tp=3).check(mesh_config())


@pytest.mark.parametrize(
    ("mesh", "rows", "message"),
    [
        ({"cp": 2}, {"length": 30, "batch_size": 8, "micro_batch_size": 1}, "cannot be cut"),
        ({"dp_shard": 3}, {"length": 32, "batch_size": 8, "micro_batch_size": 1}, "not a multiple of 3"),
        ({"pp": 4}, {"length": 32, "batch_size": 3, "micro_batch_size": 1}, "do not fill"),
        ({"pp": 2, "virtual_stages": 2}, {"length": 32, "batch_size": 3, "micro_batch_size": 1}, "no multiple of the 2 stages"),
    ],
)
def test_rows_that_cannot_be_cut(mesh: dict[str, Any], rows: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ParallelConfig(**mesh).check_rows(**rows)


def test_ranks_are_numbered_with_tensor_parallel_innermost() -> None:
    mesh = ParallelConfig(tp=8, cp=16, pp=16, dp_shard=8)
    assert mesh.world_size == 16_384
    rank = 3 + 8 * (5 + 16 * (7 + 16 * 2))
    assert mesh.coordinates(rank) == {"tp": 3, "cp": 5, "pp": 7, "dp_shard": 2, "dp_replicate": 0}
    with pytest.raises(ConfigError, match="none of the mesh's 16,384"):
        mesh.coordinates(16_384)


def test_the_405b_has_its_ends_alone_in_the_first_and_the_last_chunk() -> None:
    chunks = chunk_layers(preset("llama-3.1-405b"), ParallelConfig(tp=8, pp=16, virtual_stages=8, dp_shard=128))
    assert [len(chunk) for chunk in chunks] == [0] + [1] * 126 + [0]
    assert [layer for chunk in chunks for layer in chunk] == list(range(126))
