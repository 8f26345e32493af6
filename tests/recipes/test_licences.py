"""Every source of every recipe has its origin and licence on record, and the record agrees with the data's own manifest."""

from __future__ import annotations

import re
from itertools import islice
from pathlib import Path

import pytest

from herd.recipes.card import UNKNOWN, _licence
from herd.recipes.config import RecipeConfig
from herd.recipes.licences import LICENCES
from herd.recipes.registry import RECIPES, find_recipe
from herd.recipes.sources import read_source, record_text
from herd.train.config import SourceConfig

NAMES = re.compile(r"CC-BY-SA-[\d.]+|CC-BY-[\d.]+|CC-BY|CC0-1\.0|MIT|Apache-2\.0|BSD-3-Clause|public domain")


def sources_of(name: str) -> list[SourceConfig]:
    """Every source of a recipe, those of its tokenizer included."""
    config = find_recipe(name)
    assert isinstance(config, RecipeConfig)
    return [*config.tokenizer.sources, *(source for _, stage in config.stages() for source in stage.sources)]


# Post-training recipes, and those of the published sizes, read files of the user's own.
PRETRAINING = [name for name in RECIPES if isinstance(find_recipe(name), RecipeConfig) and not name.startswith("llama-")]


@pytest.mark.parametrize("name", PRETRAINING)
def test_every_source_of_a_recipe_has_an_origin_and_a_licence(name: str) -> None:
    for source in sources_of(name):
        origin, licence = _licence(source.path)
        assert licence != UNKNOWN, source.path
        assert origin and NAMES.search(licence), source.path


@pytest.mark.parametrize("packing", ["", ".jsonl", ".jsonl.zst", ".jsonl.gz"])
def test_a_source_is_known_whatever_its_packing(packing: str) -> None:
    assert _licence(f"corpus/klexikon_de{packing}") == ("Klexikon: dennlinger/klexikon", "CC-BY-SA-4.0")


def test_our_own_sources_are_apache() -> None:
    for path in ("own:dialogues", "own:drills", "own:needles", "package:tiny.txt"):
        assert _licence(path) == ("written for herd", "Apache-2.0")


def test_a_users_own_file_is_named_as_not_on_record() -> None:
    assert _licence("mine/diary.jsonl") == ("mine/diary.jsonl", UNKNOWN)


def test_licences_are_those_of_the_datas_manifest(shared_data: Path) -> None:
    manifest = (shared_data / "MANIFEST.md").read_text(encoding="utf-8")
    for name, (_, licence) in LICENCES.items():
        if name.startswith(("own:", "tiny.")):
            continue
        lines = [line for line in manifest.splitlines() if line.startswith(f"- `{name}.jsonl")]
        assert len(lines) == 1, name
        for part in NAMES.findall(licence):
            assert part in lines[0], (name, part)


def test_every_source_of_cria_is_in_the_public_data_and_yields_text_in_its_languages(shared_data: Path) -> None:
    for source in sources_of("cria"):
        records = list(islice(read_source(source, shared_data, seed=0), 3))
        assert len(records) == 3, source.name
        assert all(record_text(record).strip() for record in records), source.name
        assert not source.languages or {record["lang"] for record in records} <= set(source.languages)
