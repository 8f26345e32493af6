"""The memory plan: exact bytes, what fills a limit, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from herd.base.errors import ConfigError, DoesNotFitError
from herd.engine.memory import OVERHEAD_BYTES, EngineConfig, affordable_context, plan_memory
from herd.model.presets import preset

GIB = 2**30


def test_the_8b_model_in_bfloat16() -> None:
    plan = plan_memory(preset("llama-3.1-8b"), EngineConfig(context=8192, memory_bytes=24 * GIB), dtype="bfloat16")
    assert plan.weights_bytes == 2 * 8_030_261_248
    assert plan.score_bytes == 64 * 128256 * 4
    assert plan.cache_bytes == plan.num_blocks * 16 * 131_072
    assert plan.cache_tokens == (plan.num_blocks - 1) * 16
    block = 16 * 131_072
    assert 24 * GIB - block < plan.total_bytes <= 24 * GIB


def test_a_limit_that_holds_no_context_is_refused_with_what_it_takes() -> None:
    with pytest.raises(
        DoesNotFitError, match=r"131,072 tokens needs 3[0-9.]+ GiB \(15\.0 GiB of weights, 16\.0 GiB of cache\), the limit is 24"
    ):
        plan_memory(preset("llama-3.1-8b"), EngineConfig(memory_bytes=24 * GIB), dtype="bfloat16")


def test_without_a_limit_every_sequence_has_room_up_to_a_default() -> None:
    small = plan_memory(preset("cria-8m"), EngineConfig(max_sequences=4), dtype="bfloat16")
    assert small.num_blocks == 1 + 4 * 1024 // 16
    large = plan_memory(preset("llama-3.1-8b"), EngineConfig(context=8192), dtype="bfloat16")
    assert large.cache_bytes <= 2 * GIB


def test_the_affordable_context_is_the_models_or_what_the_bytes_hold() -> None:
    config = preset("llama-3.1-8b")
    assert affordable_context(config, EngineConfig(), dtype="bfloat16", cache_bytes=40 * GIB) == 131_072
    assert affordable_context(config, EngineConfig(), dtype="bfloat16", cache_bytes=GIB) == 8192 - 16
    assert affordable_context(config, EngineConfig(), dtype="bfloat16", cache_bytes=1) == 16


def test_a_context_over_the_models_is_refused() -> None:
    with pytest.raises(ConfigError, match="2,048 tokens is over the model's 1,024"):
        plan_memory(preset("cria-8m"), EngineConfig(context=2048), dtype="float32")


def test_the_total_is_the_sum_of_its_parts() -> None:
    plan = plan_memory(preset("llama-3.2-1b"), EngineConfig(context=2048), dtype="bfloat16")
    parts = plan.weights_bytes + plan.cache_bytes + plan.activation_bytes + plan.score_bytes + OVERHEAD_BYTES
    assert plan.total_bytes == parts


@pytest.mark.parametrize(
    "change",
    [{"block_size": 0}, {"token_budget": 0}, {"max_sequences": 0}, {"score_rows": 0}, {"cache_dtype": "int3"}, {"max_sequences": 1000}],
)
def test_impossible_sizes_are_refused_by_name(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(change))):
        EngineConfig(**change)
