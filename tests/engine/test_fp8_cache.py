"""Keys and values in fp8 on a CPU, by the references: the same bits however requests are run, as many bytes as planned, close scores."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest
import torch
from small_model import VOCAB, answers, mixed_requests, small_engine, small_model  # pyright: ignore[reportMissingImports]

from herd.engine.batch import Piece, ragged
from herd.engine.build import plan_for
from herd.engine.memory import EngineConfig, cache_bytes_per_token
from herd.engine.runner import CpuRunner
from herd.engine.torch_runner import TorchRunner
from herd.kernels.caches import row_width
from herd.kernels.int8_rows import cache_dtype_of, dequantise, numbers_of, quantise, scales_of
from herd.model.presets import preset

FP8 = torch.float8_e4m3fn
REQUESTS = [
    replace(one, prompt=one.prompt[:30], params=replace(one.params, max_tokens=16)) for one in mixed_requests(24) if len(one.prompt) > 30
][:5]


def test_a_vector_is_the_nearest_numbers_of_its_scale() -> None:
    x = torch.randn(7, 3, 16, generator=torch.Generator().manual_seed(0))
    rows = quantise(x, FP8)
    assert rows.dtype == FP8 and rows.shape[-1] == row_width(16, FP8) == 20
    scales = x.abs().amax(-1) / 448
    assert torch.equal(scales_of(rows), scales)
    assert torch.equal(numbers_of(rows), (x / scales[..., None]).to(FP8).float())
    assert ((dequantise(rows) - x).abs() <= x.abs() / 16 + scales[..., None] / 1024).all()


def test_zeros_have_no_scale_and_noise_stays_noise() -> None:
    x = torch.zeros(3, 8)
    x[1, 2], x[2, 3] = torch.inf, torch.nan
    rows = quantise(x, FP8)
    assert not dequantise(rows)[0].any() and scales_of(rows)[1:].isnan().all() and dequantise(rows)[1:].isnan().all()


def test_names() -> None:
    assert cache_dtype_of("fp8", torch.float32) == FP8 and cache_dtype_of(None, torch.float16) == torch.float16
    assert cache_dtype_of("int8", torch.float32) == torch.int8


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16] if os.environ.get("HERD_TEST_FULL") == "1" else [torch.float32])
def test_the_same_alone_together_cut_and_preempted(dtype: torch.dtype) -> None:
    model = small_model(dtype)
    cold = [replace(request, reuse_prefix=False) for request in REQUESTS]
    alone = answers(small_engine(model, cache_dtype="fp8", max_sequences=1), cold)
    together = small_engine(model, cache_dtype="fp8", token_budget=48, max_sequences=16)
    assert answers(together, REQUESTS, at_once=16) == alone
    assert together.scheduler.pool.num_hit_tokens > 0
    crowded = small_engine(model, cache_dtype="fp8", context=48, block_size=4, num_blocks=18)
    assert answers(crowded, REQUESTS, at_once=16) == alone
    assert crowded.scheduler.num_preemptions > 0


def test_the_plan_is_what_is_allocated() -> None:
    model = small_model()
    config = EngineConfig(context=640, max_sequences=8, cache_dtype="fp8")
    plan = plan_for(model, config)
    sizes = {"num_blocks": plan.num_blocks, "block_size": config.block_size, "score_rows": 4, "cache_dtype": "fp8"}
    for runner in (CpuRunner(model, max_tokens=8, **sizes), TorchRunner(model, **sizes)):
        assert runner.block_bytes * runner.num_blocks == plan.cache_bytes
    assert cache_bytes_per_token(preset("llama-3.1-8b"), "fp8") == 32 * 2 * 8 * (128 + 4)


def test_scores_are_close_to_those_of_a_wide_cache_and_blocks_move_bit_for_bit() -> None:
    model, found = small_model(), []
    tokens = [(7 * place) % VOCAB for place in range(40)]
    for kind in ("float32", "fp8"):
        runner = CpuRunner(model, num_blocks=8, block_size=16, max_tokens=64, score_rows=64, cache_dtype=kind)
        for first, last in ((0, 20), (20, 40)):
            piece = Piece(tokens=tokens[first:last], first=first, blocks=[2, 4, 1], rows=range(first, last))
            found += [torch.from_numpy(scores.copy()) for _, scores in runner.run(ragged([piece]))]
        if kind == "fp8":
            runner.copy_in(6, runner.copy_out(2))
            assert bytes(runner.copy_out(6)) == bytes(runner.copy_out(2)) != bytes(runner.copy_out(3))
    wide, narrow = torch.cat(found[:2]).log_softmax(-1), torch.cat(found[2:]).log_softmax(-1)
    assert 0 < (wide - narrow).abs().max() < 0.5
    assert (wide.exp() * (wide - narrow)).sum(-1).mean() < 0.01
