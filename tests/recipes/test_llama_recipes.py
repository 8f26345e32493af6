"""The published sizes as recipes: their numbers are those of the report, or said to be ours."""

from __future__ import annotations

import pytest

from herd.base.config_io import apply_overrides, from_toml, to_toml
from herd.model.presets import preset
from herd.recipes import llama
from herd.recipes.config import RecipeConfig
from herd.recipes.estimate import describe, duration, estimate_stages
from herd.recipes.registry import RECIPES, find_recipe
from herd.train.schedule import stage_learning_rate, step_plan

M = 2**20
SIZES = {
    "llama-1b": "llama-3.2-1b",
    "llama-8b": "llama-3.1-8b",
    "llama-70b": "llama-3.1-70b",
    "llama-405b": "llama-3.1-405b",
}


def recipe(name: str) -> RecipeConfig:
    config = find_recipe(name)
    assert isinstance(config, RecipeConfig)
    return config


@pytest.mark.parametrize(("name", "size"), SIZES.items())
def test_a_size_begins_at_8k_without_scaling_and_ends_as_the_published_model(name: str, size: str) -> None:
    config = recipe(name)
    assert config.model.rope_scaling is None and config.model.max_position_embeddings == 8192
    assert config.final_model == preset(size)
    assert config.model.num_parameters == preset(size).num_parameters
    assert config.tokenizer.vocab_size + 256 == config.model.vocab_size == 128_256
    assert from_toml(RecipeConfig, to_toml(config)) == config


@pytest.mark.parametrize("name", SIZES)
def test_every_size_grows_in_six_steps_to_128k_and_anneals_there(name: str) -> None:
    config = recipe(name)
    names = [stage for stage, _ in config.stages()]
    assert names == ["pretrain", *(f"long-{n}" for n in (8192, 16384, 32768, 65536, 98304, 131072)), "anneal"]
    assert config.anneal is not None and config.anneal.sequence_length == 131072
    rates = [stage_learning_rate(config.anneal, step) for step in range(config.anneal.num_steps)]
    assert rates[-1] == 0.0 and config.anneal.average_every == 1
    weights = {source.name: source.weight for source in config.anneal.sources}
    before = {source.name: source.weight for source in config.pretrain.sources}
    assert weights["maths"] > before["maths"] and weights["multilingual"] > before["multilingual"]
    assert before == {"general": 50.0, "maths": 25.0, "code": 17.0, "multilingual": 8.0}


def test_the_405b_is_as_printed() -> None:
    config = recipe("llama-405b")
    base, longer = config.pretrain, config.long_context
    assert longer is not None and config.anneal is not None
    phases = step_plan(base).phases
    assert [phase.tokens_per_step for phase in phases] == [4 * M, 8 * M, 16 * M]
    assert [phase.sequence_length for phase in phases] == [4096, 8192, 8192]
    assert [phase.end_step - phase.first_step for phase in phases][:2] == [60, 342_101]
    assert (base.lr, base.warmup_steps, base.horizon_steps) == (8e-5, 8000, 1_200_000)
    assert base.num_tokens == pytest.approx(14.8e12, rel=1e-5)
    tokens = sum(stage.num_tokens for name, stage in config.stages() if name.startswith("long-"))
    assert tokens == pytest.approx(0.8e12, rel=0.01)
    assert longer.stage.lr == pytest.approx(stage_learning_rate(base, base.num_steps - 1))
    assert longer.at(131072).batch_size == 128 and longer.at(98304).batch_size == 170
    # The printed 40M tokens are two steps of 16M; what may be meant is one override.
    assert config.anneal.num_steps == 2
    assert apply_overrides(config, ["anneal.num_steps=2384"]).anneal.num_tokens == pytest.approx(40e9, rel=1e-3)  # type: ignore[union-attr]
    assert apply_overrides(config, ["pretrain.ramp.0.until_tokens=252_000_000_000"]).pretrain.ramp[0].until_tokens == 252 * 10**9


def test_flops_of_the_405b_are_those_published() -> None:
    total = sum(estimate.flops for estimate in estimate_stages(recipe("llama-405b")))
    # 3.8e25 is 6 P D; attention's own products come on top.
    assert total == pytest.approx(4.0e25, rel=0.05)
    model = preset("llama-3.1-405b")
    assert 6 * model.num_parameters * 15.6e12 == pytest.approx(3.8e25, rel=0.005)


def test_an_estimate_names_what_it_rests_on() -> None:
    tiny = recipe("tiny")
    (first, _) = estimate_stages(tiny, peak_flops=1e12)
    assert (first.name, first.num_steps, first.num_tokens) == ("pretrain", 200, 200 * 16 * 128)
    assert first.seconds == pytest.approx(first.flops / 4e11)
    assert "40% (assumed) of its measured 1.00 TFLOP/s" in describe(first)
    (bare, _) = estimate_stages(tiny)
    assert bare.seconds is None and describe(bare).endswith("on one device")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(5.0, "5 seconds"), (300.0, "5.0 minutes"), (9000.0, "2.5 hours"), (86400.0 * 54, "54.0 days"), (1e11, "3,168.8 years")],
)
def test_durations_have_the_unit_that_fits(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_doubtful_printed_numbers_say_so() -> None:
    from herd.train.config import RampPhase, StageConfig

    assert '"252M tokens"' in (RampPhase.__doc__ or "") and "1,200,000 steps" in (StageConfig.__doc__ or "")
    assert llama.ANNEAL_TOKENS == 40_000_000 and llama.FIRST_RAMP_TOKENS == 252_000_000
    assert set(SIZES) | {"tiny-long"} <= set(RECIPES)


def test_memory_of_one_device_is_the_planners() -> None:
    config = recipe("llama-8b")
    (base, *_) = estimate_stages(config)
    # 16 bytes a parameter of state; gradients, activations and one layer in work come on top.
    assert base.memory_bytes > 16 * config.model.num_parameters
    smaller = apply_overrides(config, ["pretrain.micro_batch_size=1", "pretrain.recompute=full"])
    assert estimate_stages(smaller)[0].memory_bytes < base.memory_bytes
