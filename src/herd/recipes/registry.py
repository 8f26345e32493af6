"""The recipes by name, and a saved config read back. A recipe is a function that returns one full config."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from pathlib import Path

from herd.base.config_io import from_toml
from herd.base.errors import ConfigError, NotFoundError, did_you_mean
from herd.recipes.config import RecipeConfig
from herd.recipes.cria import cria
from herd.recipes.cria2 import cria2
from herd.recipes.llama import llama_1b, llama_8b, llama_70b, llama_405b
from herd.recipes.tiny import tiny
from herd.recipes.tiny_long import tiny_long
from herd.recipes.tune import cria_guard, distill, dpo, ipo, kto, lora, orpo, qat, qat_lora, qlora, reward, sft, simpo
from herd.recipes.tune_config import TuneConfig

AnyConfig = RecipeConfig | TuneConfig
RECIPES: dict[str, Callable[[], AnyConfig]] = {"cria": cria, "cria2": cria2, "tiny": tiny, "tiny-long": tiny_long}
RECIPES |= {"llama-1b": llama_1b, "llama-8b": llama_8b, "llama-70b": llama_70b, "llama-405b": llama_405b}
RECIPES |= {make.__name__: make for make in (sft, lora, qlora, reward, dpo, ipo, kto, orpo, simpo, distill, qat)}
RECIPES |= {"qat-lora": qat_lora, "cria-guard": cria_guard}


def read_config(text: str) -> AnyConfig:
    """A config from TOML; one with a `method` is a post-training run's. Raises ConfigError."""
    try:
        tunes = "method" in tomllib.loads(text)
    except (ValueError, RecursionError):
        tunes = False  # from_toml says what is wrong
    return from_toml(TuneConfig, text) if tunes else from_toml(RecipeConfig, text)


def find_recipe(name: str) -> AnyConfig:
    """The config of a named recipe, or of a .toml file that an earlier run saved.

    Raises NotFoundError, with the nearest name, for one that is not there; ConfigError for a file that is no config.
    """
    if name.endswith(".toml"):
        path = Path(name)
        if not path.is_file():
            raise NotFoundError(f"no config file at {path}", hint="every run saves its own as config.toml in its output folder")
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise ConfigError(f"{path} is not UTF-8: {error.reason}", hint="compare it with the config.toml that a run saves") from error
        return read_config(text)
    if name not in RECIPES:
        raise NotFoundError(f"no recipe is named {name!r}", hint=did_you_mean(name, RECIPES, otherwise="recipes: " + ", ".join(RECIPES)))
    return RECIPES[name]()
