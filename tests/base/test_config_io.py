"""Configs in and out: what is written is read back equal, what is misspelt is refused with the nearest name."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from herd.base.config_io import SCHEMA_VERSION, apply_overrides, from_dict, from_toml, to_dict, to_toml
from herd.base.errors import ConfigError, UsageError
from herd.model.config import ModelConfig, RopeScaling
from herd.recipes.config import PowerConfig, RecipeConfig, TokenizerTraining
from herd.recipes.tiny import tiny
from herd.train.config import SourceConfig, StageConfig

NOT_NEGATIVE = st.floats(0, allow_nan=False, allow_infinity=False)
SHARE = st.floats(0, 1, exclude_max=True)
POSITIVE = st.floats(min_value=1e-12, max_value=1e12)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
SIZE = st.integers(1, 10**6)

SOURCES = st.builds(
    SourceConfig,
    name=TEXT,
    path=TEXT,
    kind=st.sampled_from(["text", "chat"]),
    weight=st.floats(0, 1e6),
    languages=st.lists(TEXT, max_size=3).map(tuple),
    max_bytes=st.integers(0, 2**62),
    num_items=st.integers(0, 2**31),
)


@st.composite
def stages(draw: st.DrawFn, *, context: int = 10**6) -> StageConfig:
    micro, steps = draw(st.integers(1, 64)), draw(SIZE)
    return StageConfig(
        sources=tuple(draw(st.lists(SOURCES, min_size=1, max_size=3, unique_by=lambda source: source.name))),
        num_steps=steps,
        sequence_length=draw(st.integers(1, context)),
        batch_size=micro * draw(st.integers(1, 8)),
        micro_batch_size=micro,
        lr=draw(POSITIVE),
        final_lr_fraction=draw(st.floats(0, 1)),
        warmup_steps=draw(st.integers(0, steps)),
        weight_decay=draw(NOT_NEGATIVE),
        beta1=draw(SHARE),
        beta2=draw(SHARE),
        eps=draw(NOT_NEGATIVE),
        grad_clip=draw(NOT_NEGATIVE),
        answers_only=draw(st.booleans()),
        compute_dtype=draw(st.sampled_from(["float32", "bfloat16"])),
        log_every=draw(SIZE),
        eval_every=draw(SIZE),
        save_every=draw(SIZE),
        keep_states=draw(SIZE),
    )


@st.composite
def recipes(draw: st.DrawFn) -> RecipeConfig:
    vocab_size = draw(st.integers(256, 10**6))
    context = draw(st.integers(1, 10**6))
    heads = draw(st.integers(1, 8))
    model = ModelConfig(
        vocab_size=vocab_size + 256,
        hidden_size=draw(SIZE),
        intermediate_size=draw(SIZE),
        num_hidden_layers=draw(SIZE),
        num_attention_heads=heads * draw(st.integers(1, 4)),
        num_key_value_heads=heads,
        head_dim=2 * draw(SIZE),
        max_position_embeddings=context,
        rope_scaling=draw(st.none() | st.builds(RopeScaling, factor=st.floats(1, 64))),
        tie_word_embeddings=draw(st.booleans()),
    )
    return RecipeConfig(
        name=draw(TEXT),
        seed=draw(st.integers(0, 2**31)),
        tokenizer=TokenizerTraining(vocab_size=vocab_size, sources=tuple(draw(st.lists(SOURCES, max_size=2)))),
        model=model,
        pretrain=draw(stages(context=context)),
        anneal=draw(st.none() | stages(context=context)),
        sft=draw(st.none() | stages(context=context)),
        power=PowerConfig(hardware=draw(TEXT), watts=draw(POSITIVE)),
        sample_prompts=tuple(draw(st.lists(TEXT, max_size=3))),
    )


# beartype looks at a random item of every tuple, which hypothesis takes for a strategy that draws by itself.
drawn_by_beartype = pytest.mark.filterwarnings("ignore:Do not use the `random` module inside strategies")


@drawn_by_beartype
@given(stages())
def test_a_stage_is_read_back_equal(stage: StageConfig) -> None:
    assert from_toml(StageConfig, to_toml(stage)) == stage


@drawn_by_beartype
@given(recipes())
def test_a_recipe_is_read_back_equal_and_written_again_the_same(recipe: RecipeConfig) -> None:
    text = to_toml(recipe)
    again = from_toml(RecipeConfig, text)
    assert again == recipe
    assert to_toml(again) == text


def test_the_schema_version_is_on_top_and_another_one_is_refused() -> None:
    text = to_toml(tiny())
    assert text.splitlines()[0] == f"schema_version = {SCHEMA_VERSION}"
    with pytest.raises(ConfigError, match="schema_version 2") as refusal:
        from_toml(RecipeConfig, text.replace("schema_version = 1", "schema_version = 2", 1))
    assert refusal.value.hint
    assert from_toml(RecipeConfig, text.split("\n", 1)[1]) == tiny()


def test_a_field_that_is_none_is_left_out() -> None:
    assert "sft" not in to_dict(replace(tiny(), sft=None))


@pytest.mark.parametrize("text", ["[unclosed", "a = ", "\x00", "name = 'a'\nname = 'b'"])
def test_text_that_is_not_toml_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="not TOML") as refusal:
        from_toml(RecipeConfig, text)
    assert refusal.value.hint


@given(st.text(max_size=200))
def test_any_text_is_a_config_or_a_named_error(text: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        from_toml(RecipeConfig, text)
    assert refusal.value.hint


@pytest.mark.parametrize(
    ("change", "message", "hint"),
    [
        ({"nmae": "x"}, "unknown key 'nmae'", "did you mean 'name'?"),
        ({"kind": "txt"}, "kind is 'txt'", "did you mean 'text'?"),
        ({"weight": "2"}, "weight is '2', it must be of type float", "write weight as float"),
        ({"max_bytes": 1.5}, "max_bytes is 1.5, it must be of type int", "write max_bytes as int"),
        ({"max_bytes": True}, "max_bytes is True, it must be of type int", "write max_bytes as int"),
        ({"weight": False}, "weight is False, it must be of type float", "write weight as float"),
        ({"languages": "en"}, "languages is 'en', it must be a list", "write languages = [...]"),
        ({"languages": [1]}, "languages.0 is 1, it must be of type str", "write languages.0 as str"),
        ({"weight": -1.0}, "weight -1.0", "0 or more"),
        ({"weight": math.inf}, "weight inf", "0 or more"),
        ({"weight": math.nan}, "weight nan", "0 or more"),
    ],
)
def test_a_wrong_key_or_value_is_refused_by_its_name(change: dict[str, Any], message: str, hint: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        from_dict(SourceConfig, {"name": "a", "path": "b", **change}, where="")
    assert message in refusal.value.message
    assert hint in (refusal.value.hint or "")


def test_a_missing_key_and_a_value_in_the_place_of_a_table_are_refused_by_their_path() -> None:
    whole = to_toml(tiny())
    with pytest.raises(ConfigError, match=r"^pretrain\.num_steps is missing"):
        from_toml(RecipeConfig, re.sub(r"num_steps = \d+\n", "", whole, count=1))
    with pytest.raises(ConfigError, match=r"^power is int, it must be a table"):
        from_toml(RecipeConfig, "power = 3\n" + re.sub(r"\[power\][^\[]*", "", whole))


def test_a_whole_number_will_do_for_a_float() -> None:
    source = from_dict(SourceConfig, {"name": "a", "path": "b", "weight": 2}, where="")
    assert (source.weight, type(source.weight)) == (2.0, float)


def test_overrides_reach_any_depth() -> None:
    changed = apply_overrides(tiny(), ["seed=7", "pretrain.lr=3e-4", "sft.answers_only=no", "pretrain.compute_dtype=float32"])
    assert (changed.seed, changed.pretrain.lr, changed.pretrain.compute_dtype) == (7, 3e-4, "float32")
    assert changed.sft is not None
    assert changed.sft.answers_only is False
    assert apply_overrides(tiny(), []) == tiny()


def test_overrides_reach_an_item_by_its_name_and_by_its_number() -> None:
    by_name = apply_overrides(tiny(), ["pretrain.sources.stories.weight=0.5"])
    by_number = apply_overrides(tiny(), ["pretrain.sources.0.weight=0.5"])
    assert by_name == by_number
    assert by_name.pretrain.sources[0].weight == 0.5
    assert by_name.pretrain.sources[1:] == tiny().pretrain.sources[1:]


def test_overrides_give_tuples_none_and_large_numbers() -> None:
    changed = apply_overrides(tiny(), ["sft=none", "pretrain.sources.own.languages=en, de", "heldout_bytes=1_000"])
    assert changed.sft is None
    assert changed.pretrain.sources[1].languages == ("en", "de")
    assert changed.heldout_bytes == 1000
    assert apply_overrides(tiny(), ["sample_prompts="]).sample_prompts == ()


def test_values_that_must_agree_are_overridden_together_in_any_order() -> None:
    overrides = ["tokenizer.vocab_size=512", "model.vocab_size=768"]
    for order in (overrides, overrides[::-1]):
        changed = apply_overrides(tiny(), order)
        assert (changed.tokenizer.vocab_size, changed.model.vocab_size) == (512, 768)
    with pytest.raises(ConfigError, match=r"768 rows|1280 rows") as refusal:
        apply_overrides(tiny(), overrides[:1])
    assert refusal.value.hint == "set model.vocab_size=768"


def test_of_two_overrides_of_one_path_the_last_counts() -> None:
    assert apply_overrides(tiny(), ["seed=1", "seed=2"]).seed == 2


@pytest.mark.parametrize(
    ("override", "message", "hint"),
    [
        ("pretrain.lr", "'pretrain.lr' is not an override", "pretrain.lr=3e-4"),
        ("", "'' is not an override", "pretrain.lr=3e-4"),
        ("=3", "unknown key ''", "keys here: name"),
        ("pretrian.lr=1", "unknown key 'pretrian.lr'", "did you mean 'pretrain'?"),
        ("pretrain.lrr=1", "unknown key 'pretrain.lrr'", "did you mean 'lr'?"),
        ("pretrain.sources.storys.weight=1", "unknown key", "did you mean 'stories'?"),
        ("pretrain.sources.9.weight=1", "unknown key", "items here: stories, own"),
        ("pretrain.sources.².weight=1", "unknown key", "items here: stories, own"),
        ("pretrain.sources.stories=1", "not a single value", "pretrain.sources.stories.FIELD=VALUE"),
        ("pretrain.sources=1", "not a single value", "pretrain.sources.FIELD=VALUE"),
        ("pretrain=1", "not a single value", "pretrain.FIELD=VALUE"),
        ("pretrain.lr=fast", "pretrain.lr='fast' is not of type float", "write pretrain.lr as float"),
        ("pretrain.num_steps=1.5", "is not of type int", "write pretrain.num_steps as int"),
        ("sft.answers_only=maybe", "neither true nor false", "sft.answers_only=true"),
        ("seed.value=1", "goes below a value that has no fields: 1", "shorten the path"),
        ("sample_prompts.0.text=1", "goes below a value that has no fields", "shorten the path"),
        ("model.rope_scaling.factor=8", "goes below a value that has no fields: None", "set it whole"),
    ],
)
def test_an_override_that_means_nothing_is_refused(override: str, message: str, hint: str) -> None:
    with pytest.raises(UsageError) as refusal:
        apply_overrides(tiny(), [override])
    assert message in refusal.value.message
    assert hint in (refusal.value.hint or "")


def test_an_override_is_validated_as_any_config() -> None:
    with pytest.raises(ConfigError, match="lr is -1"):
        apply_overrides(tiny(), ["pretrain.lr=-1"])
    with pytest.raises(ConfigError, match="compute_dtype is 'flot32'") as refusal:
        apply_overrides(tiny(), ["pretrain.compute_dtype=flot32"])
    assert refusal.value.hint == "did you mean 'float32'?"


@given(st.lists(st.text(max_size=30), max_size=3))
def test_any_override_is_applied_or_a_named_error(overrides: list[str]) -> None:
    try:
        assert isinstance(apply_overrides(tiny(), overrides), RecipeConfig)
    except (UsageError, ConfigError) as error:
        assert error.hint


@dataclass(frozen=True, kw_only=True, slots=True)
class Every:
    """A field of every kind that configs use."""

    number: int = 1
    share: float = 1.0
    on: bool = False
    word: str = "a"
    choice: Literal["a", "b"] = "a"
    maybe: int | None = None
    numbers: tuple[int, ...] = ()


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("number=-3", Every(number=-3)),
        ("share=1e-3", Every(share=1e-3)),
        ("on=yes", Every(on=True)),
        ("word=x=y", Every(word="x=y")),
        ("word=", Every(word="")),
        ("choice=b", Every(choice="b")),
        ("maybe=4", Every(maybe=4)),
        ("numbers=1, 2,3", Every(numbers=(1, 2, 3))),
    ],
)
def test_text_becomes_what_the_field_says(override: str, expected: Every) -> None:
    assert apply_overrides(Every(), [override]) == expected
