"""Weights by format, to the byte, and the plan of a served model: what fits, how many at once, how fast at best."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from herd.base.errors import ConfigError, DoesNotFitError
from herd.model.presets import PRESETS, preset
from herd.plan.assumptions import Assumptions
from herd.plan.hardware import find_device
from herd.plan.serve import as_cache_dtype, cache_bytes_per_token, serve_plan, split_devices
from herd.plan.weights import FORMATS, as_format, layer_range, model_bytes, weight_bytes

BIG, H100 = preset("llama-3.1-405b"), find_device("h100-80gb")


@pytest.mark.parametrize("name", PRESETS)
def test_sixteen_and_thirty_two_bits_are_two_and_four_bytes_a_parameter(name: str) -> None:
    config = PRESETS[name]
    assert model_bytes(config, "bf16").total == 2 * config.num_parameters and model_bytes(config, "fp32").total == 4 * config.num_parameters


def counted(config: Any, kind: str) -> tuple[int, int]:
    """Weights and scales by the names of the parameters, one by one."""
    weights = scales = 0
    last = config.num_hidden_layers - 1
    for name, shape in config.parameter_shapes().items():
        size, is_layer = math.prod(shape), ".layers." in name and len(shape) == 2
        inner = is_layer and 0 < int(name.split(".")[2]) < last
        narrow = {"fp8": inner and ".mlp." in name, "fp8-linear": is_layer or name == "lm_head.weight", "int4": is_layer}[kind]
        if not narrow:
            weights += 2 * size
        elif kind == "int4":
            weights, scales = weights + size // 2, scales + 2 * size // 128
        else:
            weights, scales = weights + size, scales + 4 * shape[0]
    return weights, scales


@pytest.mark.parametrize("kind", ["fp8", "fp8-linear", "int4"])
@pytest.mark.parametrize("name", ["llama-3.1-405b", "llama-3.1-8b", "llama-3.2-1b"])
def test_a_format_has_the_bytes_of_its_parameters_one_by_one(name: str, kind: str) -> None:
    held = model_bytes(PRESETS[name], kind)  # type: ignore[arg-type]
    assert (held.weights, held.scales) == counted(PRESETS[name], kind)


def test_the_405b_has_the_published_sizes() -> None:
    assert round(model_bytes(BIG, "bf16").total / 1e9, 2) == 811.71
    assert round(model_bytes(BIG, "fp8").weights / 1e9, 1) == 487.2
    shard = weight_bytes(BIG, "fp8", tp=8)
    assert shard.weights == 60_903_292_928 and round(shard.scales / 1e6, 1) == 14.7
    assert weight_bytes(BIG, "bf16", tp=8).weights == 101_470_601_216


@given(tp=st.sampled_from([1, 2, 4, 8]), pp=st.integers(1, 9), kind=st.sampled_from(FORMATS))
def test_the_ranks_have_the_whole_model_and_norms_of_their_own(tp: int, pp: int, kind: Any) -> None:
    parts = [weight_bytes(BIG, kind, tp=tp, pp=pp, stage=stage) for stage in range(pp)]
    norms = (2 * BIG.num_hidden_layers + 1) * BIG.hidden_size * (4 if kind == "fp32" else 2)
    assert tp * sum(part.weights for part in parts) == model_bytes(BIG, kind).weights + (tp - 1) * norms
    assert [layer for stage in range(pp) for layer in layer_range(BIG, pp, stage)] == list(range(126))


@pytest.mark.parametrize(("name", "expected"), [("8b", 131_072), ("70b", 327_680), ("405b", 516_096)])
def test_a_token_takes_the_published_bytes_of_cache(name: str, expected: int) -> None:
    config = preset(f"llama-3.1-{name}")
    assert cache_bytes_per_token(config, "bf16") == expected
    scales = 4 * 2 * config.num_hidden_layers * config.num_key_value_heads
    assert cache_bytes_per_token(config, "int8") == cache_bytes_per_token(config, "fp8") == expected // 2 + scales


def test_sixteen_bits_do_not_fit_eight_gpus_and_the_released_fp8_does() -> None:
    with pytest.raises(DoesNotFitError, match=r"811\.7 GB of weights in bf16\) needs 114\.\d GB on each of 8 x h100-80gb") as caught:
        serve_plan("405b", H100, tp=8).require_fit()
    assert caught.value.hint == "--gpus 16 holds it (TP 8, PP 2); or choose a narrower --weights"
    plan = serve_plan("405b", H100, tp=8, weights="fp8").require_fit()
    assert round(plan.model_bytes_with_one / 1e9, 1) == 554.9 and plan.max_sequences == 1
    assert serve_plan("405b", H100, tp=8, pp=2).require_fit().max_sequences >= 1


def test_a_context_that_is_too_long_is_refused_with_one_that_fits() -> None:
    with pytest.raises(DoesNotFitError, match="for 131,072 tokens") as caught:
        serve_plan("8b", "rtx-4090").require_fit()
    tokens = int(str(caught.value.hint).split("context of ")[1].split(" tokens")[0].replace(",", ""))
    assert serve_plan("8b", "rtx-4090", context=tokens).max_sequences == 1
    assert serve_plan("8b", "rtx-4090", context=tokens + 16).max_sequences == 0


@given(context=st.integers(1, 131_072), cache=st.sampled_from(["bf16", "fp8", "int8"]))
def test_as_many_sequences_fit_as_are_told_and_not_one_more(context: int, cache: Any) -> None:
    plan = serve_plan("8b", H100, context=context, cache=cache)
    rank = plan.fullest
    used = rank.fixed + plan.max_sequences * rank.cache_per_sequence
    assert used <= H100.memory_bytes < used + rank.cache_per_sequence + plan.max_sequences + 1


def test_writing_alone_is_bound_by_reading_the_weights() -> None:
    ideal = Assumptions(memory=1.0, link_latency_us=0.0)
    plan = serve_plan("8b", H100, context=8192, assumptions=ideal)
    speed = plan.decode(1, length=0)
    config = preset("llama-3.1-8b")
    read = 2 * (config.num_parameters - config.vocab_size * config.hidden_size) + config.kv_bytes_per_token()
    assert speed.bound == "memory bandwidth" and speed.step_s == pytest.approx(read / 3350e9)
    assert plan.decode(2000, length=0).bound == "matrix products"


def test_a_tied_matrix_is_read_as_the_head() -> None:
    config = preset("llama-3.2-1b")
    step = serve_plan("1b", H100, assumptions=Assumptions(memory=1.0)).decode(1, length=0).step_s
    assert step == pytest.approx((2 * config.num_parameters + config.kv_bytes_per_token()) / 3350e9)


def test_more_at_once_is_more_tokens_and_longer_steps() -> None:
    plan = serve_plan("70b", H100, tp=8, context=8192)
    speeds = [plan.decode(count) for count in (1, 4, 16, 64)]
    assert [speed.tokens_per_s for speed in speeds] == sorted(speed.tokens_per_s for speed in speeds)
    assert [speed.step_s for speed in speeds] == sorted(speed.step_s for speed in speeds)


def test_the_first_token_is_bound_by_products() -> None:
    plan = serve_plan("8b", H100, context=8192)
    config = preset("llama-3.1-8b")
    least = 2 * config.num_hidden_layers * (config.num_parameters_attention + config.num_parameters_ffn) * 4096 / (989.4e12 * 0.7)
    assert least < plan.first_token_s(4096) < 1.3 * least
    assert plan.first_token_s(8192) > 2 * plan.first_token_s(4096)


def test_stages_take_turns() -> None:
    one, two = (serve_plan("405b", H100, tp=8, pp=pp, weights="bf16", context=4096) for pp in (1, 2))
    assert two.decode(1).step_s == pytest.approx(one.decode(1).step_s, rel=0.05)
    assert 1.5 < two.decode(64).tokens_per_s / two.decode(32).tokens_per_s < 2.1
    assert two.first_token_s(4096) < one.first_token_s(4096)


def test_devices_are_split_as_heads_and_nodes_allow() -> None:
    assert [split_devices(BIG, H100, count) for count in (1, 8, 16, 24)] == [(1, 1), (8, 1), (8, 2), (8, 3)]
    assert split_devices(BIG, H100, 7) == (1, 7) and split_devices(preset("cria-8m"), H100, 16) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tp": 3}, "tp 3 does not divide 8 KV heads"),
        ({"pp": 40}, "pp is 40, the model has 32 layers"),
        ({"tp": 0}, "tp is 0"),
        ({"context": 131_073}, "131,073 tokens is not within the model's 131,072"),
        ({"token_budget": 0}, "token_budget is 0"),
    ],
)
def test_what_cannot_be_is_refused_by_name(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        serve_plan("8b", H100, **change)
    with pytest.raises(ConfigError, match="the format of weights is 'fp6'"):
        as_format("fp6")
    with pytest.raises(ConfigError, match="kv dtype is 'int2'"):
        as_cache_dtype("int2")
    assert as_format("bfloat16") == as_cache_dtype("bfloat16") == "bf16"
    with pytest.raises(ConfigError, match="more than the 4 of small"):
        serve_plan("8b", replace(H100, name="small", num_devices=4), tp=8)
    with pytest.raises(ConfigError, match="sequences are 0"):
        serve_plan("8b", H100).decode(0)
    with pytest.raises(ConfigError, match="the prompt has 0 tokens"):
        serve_plan("8b", H100).first_token_s(0)
