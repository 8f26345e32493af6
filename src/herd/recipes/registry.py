"""The recipes by name, and a saved config read back. A recipe is a function that returns one full config."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from herd.base.config_io import from_toml
from herd.base.errors import ConfigError, NotFoundError, did_you_mean
from herd.recipes.config import RecipeConfig
from herd.recipes.cria import cria
from herd.recipes.tiny import tiny

RECIPES: dict[str, Callable[[], RecipeConfig]] = {"cria": cria, "tiny": tiny}


def find_recipe(name: str) -> RecipeConfig:
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
        return from_toml(RecipeConfig, text)
    if name not in RECIPES:
        raise NotFoundError(f"no recipe is named {name!r}", hint=did_you_mean(name, RECIPES, otherwise="recipes: " + ", ".join(RECIPES)))
    return RECIPES[name]()
