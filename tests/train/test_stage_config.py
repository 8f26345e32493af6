"""What a stage and a source may be: every impossible value is refused with the value, the limit and a hint."""

from __future__ import annotations

import re
from typing import Any

import pytest

from herd.base.config_io import from_toml, to_toml
from herd.base.errors import ConfigError
from herd.train.config import SourceConfig, StageConfig

SOURCE = SourceConfig(name="a", path="a.jsonl")


def stage(**changes: Any) -> StageConfig:
    return StageConfig(**({"sources": (SOURCE,), "num_steps": 100, "batch_size": 8, "micro_batch_size": 4} | changes))


@pytest.mark.parametrize(
    "name", ["num_steps", "sequence_length", "batch_size", "micro_batch_size", "log_every", "eval_every", "save_every", "keep_states"]
)
@pytest.mark.parametrize("value", [0, -3])
def test_counts_are_at_least_one(name: str, value: int) -> None:
    with pytest.raises(ConfigError, match=f"^{name} is {value}, it must be at least 1$") as caught:
        stage(**{name: value})
    assert caught.value.hint == f"set {name} to a positive number"


NAN, INF = float("nan"), float("inf")
IMPOSSIBLE: list[tuple[dict[str, Any], str]] = [
    ({"micro_batch_size": 3}, "batch_size 8 is not a multiple of micro_batch_size 3"),
    ({"micro_batch_size": 16}, "batch_size 8 is not a multiple of micro_batch_size 16"),
    *(({"lr": value}, f"lr is {value}, it must be positive") for value in (0.0, -1.0, NAN, INF)),
    *(({"final_lr_fraction": value}, f"final_lr_fraction is {value}, it must be between 0 and 1") for value in (-0.1, 1.1, NAN)),
    *(({"warmup_steps": value}, f"warmup_steps is {value}, it must lie between 0 and num_steps (100)") for value in (-1, 101)),
    *(({name: value}, f"{name} is {value}, it must be 0 or more and below 1") for name in ("beta1", "beta2") for value in (1.0, -0.1, NAN)),
    *(
        ({name: value}, f"{name} is {value}, it must be 0 or more")
        for name in ("weight_decay", "eps", "grad_clip")
        for value in (-0.1, NAN, INF)
    ),
    ({"sources": ()}, "a training stage needs at least one data source"),
    ({"sources": (SOURCE, SourceConfig(name="b", path="b.txt"), SOURCE)}, "2 sources of a stage are named 'a'"),
]


@pytest.mark.parametrize(("changes", "message"), IMPOSSIBLE, ids=[message for _, message in IMPOSSIBLE])
def test_an_impossible_stage_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        stage(**changes)
    assert caught.value.hint


def test_the_limits_themselves_are_fine() -> None:
    edge = {"warmup_steps": 100, "final_lr_fraction": 1.0, "beta1": 0.0, "grad_clip": 0.0, "weight_decay": 0.0, "micro_batch_size": 8}
    assert stage(**edge).warmup_steps == 100
    assert stage(warmup_steps=0, final_lr_fraction=0.0).warmup_steps == 0


@pytest.mark.parametrize("weight", [-1.0, NAN, INF])
def test_a_weight_is_a_finite_share(weight: float) -> None:
    with pytest.raises(ConfigError, match=f"source 'a' has weight {weight}") as caught:
        SourceConfig(name="a", path="a.jsonl", weight=weight)
    assert "0 or more" in str(caught.value.hint)


@pytest.mark.parametrize("name", ["max_bytes", "num_items"])
def test_a_limit_of_a_source_is_not_negative(name: str) -> None:
    with pytest.raises(ConfigError, match=f"source 'a' has {name} -1"):
        SourceConfig(name="a", path="a.jsonl", **{name: -1})


def test_tokens_read_are_steps_times_batch_times_length() -> None:
    assert stage(num_steps=7, warmup_steps=0, batch_size=4, sequence_length=30).num_tokens == 840


def test_a_stage_goes_through_toml_and_back() -> None:
    config = stage(sources=(SOURCE, SourceConfig(name="b", path="b", kind="chat", languages=("en", "th"), weight=0.5)), lr=3e-4)
    assert from_toml(StageConfig, to_toml(config)) == config
