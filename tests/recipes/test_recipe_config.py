"""A recipe's config: what it refuses, how it is changed by dotted path, and that what is saved is what is read."""

from __future__ import annotations

import dataclasses
import re

import pytest

from herd.base.config_io import apply_overrides, from_toml, to_toml
from herd.base.errors import ConfigError, UsageError
from herd.recipes.config import PowerConfig, RecipeConfig
from herd.recipes.registry import RECIPES, find_recipe, read_config
from herd.train.config import SourceConfig

TINY = find_recipe("tiny")


def test_a_model_with_other_rows_than_its_tokenizer_is_refused_with_the_number_to_set() -> None:
    with pytest.raises(ConfigError, match=r"^the model has 1280 rows for a tokenizer of 2000 \+ 256 special tokens$") as caught:
        apply_overrides(TINY, ["tokenizer.vocab_size=2000"])
    assert caught.value.hint == "set model.vocab_size=2256"
    changed = apply_overrides(TINY, ["tokenizer.vocab_size=2000", "model.vocab_size=2256"])
    assert (changed.tokenizer.vocab_size, changed.model.vocab_size) == (2000, 2256)


@pytest.mark.parametrize("stage", ["pretrain", "sft"])
def test_sequences_over_the_models_context_are_refused(stage: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{stage}.sequence_length 513 is over the model's context of 512$") as caught:
        apply_overrides(TINY, [f"{stage}.sequence_length=513"])
    assert caught.value.hint == f"set {stage}.sequence_length or model.max_position_embeddings"
    assert apply_overrides(TINY, [f"{stage}.sequence_length=512"])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed=-1", "seed is -1, it must be at least 0"),
        ("num_threads=-2", "num_threads is -2, it must be at least 0"),
        ("heldout_bytes=-1", "heldout_bytes is -1, it must be at least 0"),
        ("heldout_one_in=0", "heldout_one_in is 0, it must be at least 2"),
        ("heldout_one_in=1", "heldout_one_in is 1, it must be at least 2"),
        ("pretrain.num_steps=0", "num_steps is 0"),
        ("pretrain.sources.own.weight=-1", "source 'own' has weight -1"),
        ("model.num_key_value_heads=3", "cannot share 3 KV heads evenly"),
    ],
)
def test_impossible_numbers_are_refused_with_a_hint(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        apply_overrides(TINY, [override])
    assert caught.value.hint


def test_every_level_is_reached_by_its_dotted_path_and_the_rest_stays() -> None:
    changed = apply_overrides(
        TINY,
        [
            "seed=9",
            "pretrain.lr=3e-4",
            "pretrain.num_steps=1_000",
            "sft.answers_only=false",
            "model.rope_theta=10000",
            "power.hardware=a laptop, on a table",
            "pretrain.sources.own.weight=0.5",
            "pretrain.sources.0.max_bytes=5000",
            "tokenizer.sources.own.languages=de, fr",
            "sample_prompts=Hello!, Wer bist du?",
            "pretrain.compute_dtype=float32",
        ],
    )
    assert (changed.seed, changed.pretrain.lr, changed.pretrain.num_steps, changed.model.rope_theta) == (9, 3e-4, 1000, 10000.0)
    assert changed.sft is not None and changed.sft.answers_only is False
    assert changed.power == dataclasses.replace(TINY.power, hardware="a laptop, on a table")
    assert [source.weight for source in changed.pretrain.sources] == [1.0, 0.5]
    assert [source.max_bytes for source in changed.pretrain.sources] == [5000, 0]
    assert changed.tokenizer.sources[1].languages == ("de", "fr")
    assert changed.sample_prompts == ("Hello!", "Wer bist du?")
    assert changed.pretrain.compute_dtype == "float32"
    assert changed.sft.sources == TINY.sft.sources if TINY.sft else False
    assert find_recipe("tiny") == TINY, "the recipe itself is never changed"


def test_the_last_override_of_a_path_counts() -> None:
    assert apply_overrides(TINY, ["pretrain.lr=1", "pretrain.lr=2"]).pretrain.lr == 2.0


@pytest.mark.parametrize(
    ("override", "message", "hint"),
    [
        ("pretrain.learning_rate=1", "unknown key 'pretrain.learning_rate'", ""),
        ("pretrain.num_step=1", "unknown key 'pretrain.num_step'", "did you mean 'num_steps'?"),
        ("pretrian.lr=1", "unknown key 'pretrian.lr'", "did you mean 'pretrain'?"),
        ("pretrain.sources.storys.weight=1", "unknown key 'pretrain.sources.storys.weight'", "did you mean 'stories'?"),
        ("pretrain.sources.2.weight=1", "unknown key 'pretrain.sources.2.weight'", "items here: stories, own"),
        ("pretrain.lr=fast", "pretrain.lr='fast' is not of type float", "write pretrain.lr as float"),
        ("pretrain.num_steps=1.5", "pretrain.num_steps='1.5' is not of type int", "write pretrain.num_steps as int"),
        ("sft.answers_only=maybe", "sft.answers_only='maybe' is neither true nor false", "write sft.answers_only=true"),
        ("pretrain=1", "pretrain is not a single value", "pretrain.FIELD=VALUE"),
        ("pretrain.lr.x=1", "'pretrain.lr.x' goes below a value that has no fields", "shorten the path"),
        ("anneal.lr=1", "'anneal.lr' goes below a value that has no fields: None", "set it whole"),
        ("pretrain.lr", "'pretrain.lr' is not an override", "overrides look like pretrain.lr=3e-4"),
    ],
)
def test_an_override_that_means_nothing_is_refused_with_a_way_out(override: str, message: str, hint: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)) as caught:
        apply_overrides(TINY, [override])
    assert hint in str(caught.value.hint)


def test_an_unknown_dtype_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"^pretrain\.compute_dtype is 'bf16'$") as caught:
        apply_overrides(TINY, ["pretrain.compute_dtype=bf16"])
    assert "bfloat16" in str(caught.value.hint)


def test_a_stage_is_left_out_by_setting_it_to_none() -> None:
    assert [name for name, _ in TINY.stages()] == ["pretrain", "sft"]
    assert [name for name, _ in apply_overrides(TINY, ["sft=none"]).stages()] == ["pretrain"]


def test_stages_come_in_the_order_of_training_and_every_one_is_checked() -> None:
    config = dataclasses.replace(TINY, anneal=TINY.pretrain)
    assert [name for name, _ in config.stages()] == ["pretrain", "anneal", "sft"]
    with pytest.raises(ConfigError, match=r"^anneal\.sequence_length"):
        dataclasses.replace(TINY, anneal=dataclasses.replace(TINY.pretrain, sequence_length=4096))


@pytest.mark.parametrize("name", RECIPES)
def test_what_a_recipe_saves_is_saved_again_letter_for_letter(name: str) -> None:
    text = to_toml(find_recipe(name))
    assert text.startswith("schema_version = 1\n")
    assert to_toml(read_config(text)) == text


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_goes_through_toml_and_back(name: str) -> None:
    config = find_recipe(name)
    assert config.name == name
    assert read_config(to_toml(config)) == config


def test_a_config_with_every_kind_of_value_goes_through_toml_and_back() -> None:
    source = SourceConfig(name="für viele", path='a\\b "c".jsonl', kind="chat", languages=("en", "th"), weight=1e-7, num_items=3)
    config = dataclasses.replace(
        TINY,
        anneal=dataclasses.replace(TINY.pretrain, sources=(source,), lr=1 / 3),
        sft=None,
        power=PowerConfig(hardware="two\nlines", watts=1e3),
        sample_prompts=("नमस्ते! ''' \"\"\"", "a, b"),
    )
    assert from_toml(RecipeConfig, to_toml(config)) == config


@pytest.mark.parametrize(
    ("old", "new", "message", "hint"),
    [
        ("num_steps = 200", "num_steps = 0", "num_steps is 0", "positive"),
        ("num_steps = 200", "num_steps = 2.5", "pretrain.num_steps is 2.5, it must be of type int", "as int"),
        ("num_steps = 200", "num_stps = 200", "unknown key 'pretrain.num_stps'", "did you mean 'num_steps'?"),
        ("num_steps = 200\n", "", "pretrain.num_steps is missing", "without a default"),
        ("schema_version = 1", "schema_version = 2", "schema_version 2, this herd reads 1", "the herd that wrote it"),
        ('kind = "text"', 'kind = "txt"', "tokenizer.sources.0.kind is 'txt'", "did you mean 'text'?"),
        ("[power]", "[power", "the config is not TOML", "config.toml"),
    ],
)
def test_a_saved_config_that_was_damaged_is_refused_by_name(old: str, new: str, message: str, hint: str) -> None:
    text = to_toml(TINY)
    assert old in text
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        from_toml(RecipeConfig, text.replace(old, new, 1))
    assert hint in str(caught.value.hint)
