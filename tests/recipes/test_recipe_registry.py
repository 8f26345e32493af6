"""Recipes by name and by file: what is found, and what is said of one that is not."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from herd.base.config_io import to_toml
from herd.base.errors import ConfigError, NotFoundError
from herd.recipes.registry import RECIPES, find_recipe


def test_a_recipe_is_found_by_its_name_and_is_the_same_every_time() -> None:
    assert find_recipe("tiny").name == "tiny"
    assert find_recipe("tiny") == find_recipe("tiny")
    assert {"tiny", "cria"} <= RECIPES.keys()


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_says_in_a_line_what_it_trains(name: str) -> None:
    first = (RECIPES[name].__doc__ or "").splitlines()[0]
    assert 20 < len(first) < 140 and first.endswith(".")


@pytest.mark.parametrize(
    ("name", "hint"), [("Tiny", "did you mean 'tiny'?"), ("crya", "did you mean 'cria'?"), ("gemma", "recipes: " + ", ".join(RECIPES))]
)
def test_an_unknown_recipe_is_refused_with_the_nearest_name_or_all_of_them(name: str, hint: str) -> None:
    with pytest.raises(NotFoundError, match=f"^no recipe is named '{name}'$") as caught:
        find_recipe(name)
    assert caught.value.hint == hint


def test_a_saved_config_is_a_recipe(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    config = replace(find_recipe("tiny"), sample_prompts=("नमस्ते!",))
    path.write_text(to_toml(config), encoding="utf-8")
    assert find_recipe(str(path)) == config


def test_a_config_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "none.toml", tmp_path):
        name = str(path) if path.suffix else f"{path}/.toml"
        with pytest.raises(NotFoundError, match=f"^no config file at {re.escape(name)}$") as caught:
            find_recipe(name)
        assert "config.toml" in str(caught.value.hint)


def test_a_config_file_that_is_not_text_or_not_toml_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_bytes(b'name = "\xe9t\xe9"')
    with pytest.raises(ConfigError, match=r"config\.toml is not UTF-8"):
        find_recipe(str(path))
    path.write_text("a recipe, please")
    with pytest.raises(ConfigError, match="the config is not TOML"):
        find_recipe(str(path))
    path.write_text("")
    with pytest.raises(ConfigError, match=r"^name is missing$"):
        find_recipe(str(path))


def test_recipes_are_listed_and_shown_without_torch() -> None:
    code = "import sys, herd.recipes.registry as r; r.find_recipe('cria'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
