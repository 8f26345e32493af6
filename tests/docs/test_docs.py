"""What the documentation says is true: its Python runs, its commands and flags exist, its lists are whole, its pages are found."""

from __future__ import annotations

import dataclasses
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from herd.base.errors import HerdError
from herd.base.paths import bundled_model
from herd.base.settings import SETTINGS

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
TEXTS = [*PAGES, *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`(herd [^`\n]+)`")
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
# Commands whose text or arguments are stand-ins are parsed all the same: only words that name no command would be refused.
ELLIPSIS = ("...", "|")


def named(paths: list[Path]) -> Any:
    return pytest.mark.parametrize("page", paths, ids=[str(path.relative_to(ROOT)) for path in paths])


def blocks(page: Path, language: str) -> list[str]:
    return [body for found, body in FENCE.findall(page.read_text(encoding="utf-8")) if found == language]


def group() -> Any:
    import typer

    from herd.cli.app import app

    return typer.main.get_command(app)


WITH_PYTHON = [page for page in TEXTS if blocks(page, "python")]


@named(WITH_PYTHON)
def test_python_of_a_page_runs_from_top_to_bottom(
    page: Path, stand_in: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HERD_HOME", str(tmp_path / "home"))
    if not (bundled_model() / "config.json").is_file():
        monkeypatch.setattr("herd.checkpoint.resolve.bundled_model", lambda: stand_in)
    names: dict[str, Any] = {}
    for number, body in enumerate(blocks(page, "python"), start=1):
        exec(compile(body, f"{page.name}, block {number}", "exec"), names)
    assert capsys.readouterr().out or page.name == "errors.md"


def command_lines(page: Path) -> Iterator[str]:
    """Every herd command of a page: those of console blocks, cut at pipes and &&, and those in running text."""
    text = page.read_text(encoding="utf-8")
    for body in blocks(page, "console"):
        for line in body.splitlines():
            if line.startswith("$ "):
                for part in re.split(r"&&|\|(?![^\"']*[\"'])", line[2:]):
                    if part.strip().startswith("herd "):
                        yield part.split(" #")[0].strip()
    for line in INLINE.findall(FENCE.sub("", text)):
        if not any(mark in line for mark in ELLIPSIS):
            yield line


def problem(line: str) -> str | None:
    """Why a command line is none: an unknown command or flag, or an option without its value."""
    words = shlex.split(line)[1:]
    command = group()
    while words and hasattr(command, "commands"):
        if words[0] in command.commands:
            command = command.commands[words.pop(0)]
        elif words[0].startswith("-"):
            break
        else:
            return f"no command {words[0]!r}"
    named = [(name, parameter) for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)]
    options = {name: parameter for name, parameter in named if name.startswith("-")}
    options |= {"--help": None, "-h": None, "--debug": None}
    while words:
        word, _, value = words.pop(0).partition("=")
        if word.startswith("-") and word != "-":
            if word not in options:
                return f"{command.name} has no option {word}"
            takes_value = options[word] is not None and not options[word].is_flag
            if takes_value and not value and (not words or words.pop(0).startswith("--")):
                return f"{word} has no value"
        elif word in (">", ">>", "<"):
            break
    return None


@named(TEXTS)
def test_every_herd_command_of_a_page_exists_with_its_flags(page: Path) -> None:
    wrong = {line: why for line in command_lines(page) if (why := problem(line)) is not None}
    assert not wrong


def test_the_check_of_commands_sees_what_is_wrong() -> None:
    assert problem("herd run --raw 'text' --top-p 0.9") is None
    assert problem("herd run --rae text") == "run has no option --rae"
    assert problem("herd tokeniser encode x") == "no command 'tokeniser'"
    assert problem("herd tokenizer encode --model") == "--model has no value"
    assert list(command_lines(DOCS / "guides" / "chat.md"))


def test_every_command_of_the_application_is_in_a_guide_or_the_readme() -> None:
    pages = [page for page in TEXTS if page != DOCS / "reference" / "cli.md"]
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages)
    assert not [name for name in group().commands if f"herd {name}" not in text]


def error_classes(kind: type[HerdError] = HerdError) -> Iterator[type[HerdError]]:
    import herd.bench.http
    import herd.engine.engine
    import herd.stack.server
    import herd.stack.worker
    import herd.tools.errors
    import herd.tools.web.inflate
    import herd.train.parallel.trainer  # noqa: F401  the errors of training live there and in what it imports

    yield kind
    for below in kind.__subclasses__():
        yield from error_classes(below)


def test_every_error_code_is_documented_with_its_class_and_exit_code() -> None:
    rows = {
        cells[0].strip("`"): (cells[1].strip("`"), int(cells[2]))
        for line in (DOCS / "reference" / "errors.md").read_text(encoding="utf-8").splitlines()
        if line.startswith("| `") and len(cells := [cell.strip() for cell in line.strip("|").split("|")]) == 5
    }
    own = {kind for kind in error_classes() if kind.__module__.startswith("herd.") and "code" in vars(kind)}
    assert rows == {kind.code: (kind.__name__, kind.exit_code) for kind in own}


def test_every_setting_is_documented_with_its_default() -> None:
    text = (DOCS / "reference" / "config.md").read_text(encoding="utf-8")
    for name, setting in SETTINGS.items():
        row = next((line for line in text.splitlines() if line.startswith(f"| `{name}` | `{setting.variable}`")), None)
        assert row is not None, name
        assert str(setting.default) in row


def config_rows() -> dict[str, str]:
    """The keys of the recipe tables with their second column."""
    text = (DOCS / "reference" / "config.md").read_text(encoding="utf-8").partition("## Recipes")[2]
    rows: dict[str, str] = {}
    for line in text.splitlines():
        if line.startswith("| `"):
            keys, second = (cell.strip() for cell in line.strip("|").split("|")[:2])
            names = [key.strip(" `") for key in keys.split(",")]
            values = [value.strip() for value in second.split(",")] if len(names) > 1 else [second]
            rows |= dict(zip(names, values if len(values) == len(names) else values * len(names), strict=False))
    return rows


def test_every_key_of_a_recipe_is_documented_and_no_other() -> None:
    from herd.recipes.config import RecipeConfig
    from herd.recipes.tune_config import TuneConfig
    from herd.train.adapters.config import LoraConfig
    from herd.train.config import GuardConfig, MixChange, RampPhase, SourceConfig, StageConfig
    from herd.train.context_config import LongContextConfig
    from herd.train.objectives.config import DistillConfig, PreferenceConfig, RewardConfig
    from herd.train.parallel.config import ParallelConfig
    from herd.train.qat_config import QatConfig

    kinds = (RecipeConfig, StageConfig, SourceConfig, TuneConfig, PreferenceConfig, RewardConfig, DistillConfig, LoraConfig, QatConfig)
    fields = {field.name for kind in kinds for field in dataclasses.fields(kind)}
    parts: dict[str, type] = {"ramp": RampPhase, "mix_changes": MixChange, "guard": GuardConfig, "long_context": LongContextConfig}
    parts["parallel"] = ParallelConfig
    fields |= {f"{name}.{field.name}" for name, kind in parts.items() for field in dataclasses.fields(kind)}
    assert set(config_rows()) == fields


def test_the_documented_defaults_of_a_stage_are_the_real_ones() -> None:
    from herd.train.config import StageConfig

    rows = config_rows()
    for field in dataclasses.fields(StageConfig):
        if field.default is not dataclasses.MISSING and not dataclasses.is_dataclass(field.default):
            written = rows[field.name]
            same = written.lower() == str(field.default).lower() or (not isinstance(field.default, str) and float(written) == field.default)
            assert same, field.name


def test_the_documented_presets_are_the_real_ones() -> None:
    from herd.model.presets import PRESETS

    text = (DOCS / "concepts" / "model.md").read_text(encoding="utf-8")
    for name, config in PRESETS.items():
        numbers = (config.num_hidden_layers, config.hidden_size, config.intermediate_size)
        heads = f"{config.num_attention_heads} / {config.num_key_value_heads}"
        cells = [*(f"{number:,}" for number in numbers), heads, f"{config.max_position_embeddings:,}", f"{config.num_parameters:,}"]
        assert f"| {name} | {' | '.join(cells)} |" in text


def test_the_documented_chat_commands_are_the_real_ones() -> None:
    from herd.cli.repl import COMMANDS

    text = (DOCS / "guides" / "chat.md").read_text(encoding="utf-8")
    rows = "\n".join(line for line in text.splitlines() if line.startswith("| `/"))
    assert set(re.findall(r"(/[a-z]+)", rows)) == set(COMMANDS)


def test_the_page_of_the_command_line_is_fresh() -> None:
    done = subprocess.run([sys.executable, str(DOCS / "cli_reference.py"), "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as the site makes them."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text(encoding="utf-8")), re.MULTILINE):
        own = re.search(r"\{#([\w-]+)\}", heading)
        plain = re.sub(r"[^\w\s-]", "", heading.lower()).strip()
        found.add(own.group(1) if own else re.sub(r"[\s]+", "-", plain))
    return found


@named(TEXTS)
def test_every_link_of_a_page_leads_somewhere(page: Path) -> None:
    for target in LINK.findall(FENCE.sub("", page.read_text(encoding="utf-8"))):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked), target


def test_every_page_is_in_the_navigation() -> None:
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert sorted(re.findall(r"^\s*- [^:\n]+: (\S+\.md)$", text, re.MULTILINE)) == sorted(str(page.relative_to(DOCS)) for page in PAGES)


def test_every_name_of_the_api_page_can_be_imported() -> None:
    from pkgutil import resolve_name

    names = re.findall(r"^::: (\S+)$", (DOCS / "reference" / "api.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(names) > 20
    for name in names:
        resolve_name(name)


def test_the_files_of_the_reading_order_exist() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    files = re.findall(r"^\d\. \[`(src/herd/\S+\.py)`\]", readme, re.MULTILINE)
    assert len(files) == 6
    assert all((ROOT / file).is_file() for file in files)
