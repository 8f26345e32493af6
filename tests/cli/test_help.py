"""Help: every command has it, it is whole and plain, and asking for it loads nothing heavy."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import typer
from herd_command import HerdCommand, environment  # pyright: ignore[reportMissingImports]

from herd.cli.app import app
from herd.version import __version__

HEAVY = (
    "torch",
    "numpy",
    "tiktoken",
    "tokenizers",
    "safetensors",
    "huggingface_hub",
    "prompt_toolkit",
    "rich.progress",
    "zstandard",
    "jinja2",
)


def commands(command: Any = None, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command with the words that call it, groups before their members."""
    command = typer.main.get_command(app) if command is None else command
    yield path, command
    for name, member in getattr(command, "commands", {}).items():
        yield from commands(member, (*path, name))


COMMANDS = dict(commands())
LEAVES = {path: command for path, command in COMMANDS.items() if not hasattr(command, "commands")}


def spelled(path: tuple[str, ...]) -> str:
    return " ".join(("herd", *path))


def test_the_commands_are_these() -> None:
    assert {" ".join(path) for path in LEAVES} == {
        "batch",
        "agent",
        "guard check",
        "guard eval",
        "guard train",
        "chat",
        "run",
        "serve",
        "replay",
        "code",
        "tools list",
        "tools call",
        "tools doctor",
        "tools agree",
        "tools index",
        "tools serve",
        "keys new",
        "keys check",
        "db upgrade",
        "db backup",
        "db check",
        "plan train",
        "plan serve",
        "plan hardware",
        "plan carbon",
        "plan published",
        "bench latency",
        "bench throughput",
        "bench serve",
        "models",
        "pull",
        "show",
        "convert",
        "verify",
        "train",
        "launch",
        "merge",
        "average",
        "data curate",
        "data run",
        "data slurm",
        "data report",
        "data inspect",
        "data dedup",
        "data decontaminate",
        "data tokenize",
        "data mix",
        "data classifier label",
        "data classifier train",
        "data classifier score",
        "quantize",
        "quality",
        "tokenizer train",
        "tokenizer encode",
        "tokenizer decode",
        "config show",
        "cache list",
        "cache prune",
        "cache clear",
        "doctor",
        "completion",
    }


@pytest.mark.parametrize("flag", ["--help", "-h"])
@pytest.mark.parametrize("path", COMMANDS, ids=spelled)
def test_every_command_has_help_on_stdout(herd: HerdCommand, path: tuple[str, ...], flag: str) -> None:
    result = herd(*path, flag)
    assert (result.code, result.err) == (0, "")
    assert result.out.startswith(f"Usage: {spelled(path)}")
    assert "\x1b" not in result.out, "help is plain text"


@pytest.mark.parametrize("path", LEAVES, ids=spelled)
def test_every_option_and_argument_is_explained(herd: HerdCommand, path: tuple[str, ...]) -> None:
    text = " ".join(herd(*path, "--help").out.split())
    for parameter in LEAVES[path].params:
        for name in parameter.opts if parameter.param_type_name == "option" else [parameter.metavar or parameter.name]:
            assert name in text
        assert parameter.help, f"{parameter.name} of {spelled(path)} has no help"
        assert " ".join(parameter.help.split()) in text


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ((), ("chat", "run", "models", "pull", "show", "convert", "verify", "train", "tokenizer", "doctor", "config", "completion")),
        (("tokenizer",), ("train", "encode", "decode")),
        (("config",), ("show",)),
    ],
)
def test_a_group_lists_its_commands_with_what_they_do(herd: HerdCommand, path: tuple[str, ...], words: tuple[str, ...]) -> None:
    listed = re.findall(r"^  ([a-z]+)  +\S", herd(*path, "--help").out, re.MULTILINE)
    assert set(words) <= set(listed)


def test_the_top_lists_commands_under_headings_with_their_whole_first_sentence(herd: HerdCommand) -> None:
    text = herd("--help").out
    headings = ("Use a model:", "Get and look at models:", "Train:", "This installation:")
    assert [line for line in text.splitlines() if line in headings] == list(headings)
    assert "..." not in text.split("Use a model:")[1]


@pytest.mark.parametrize("group", ["tokenizer", "config"])
def test_a_group_without_a_command_is_a_usage_error_that_shows_its_help(herd: HerdCommand, group: str) -> None:
    result = herd(group)
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith(f"Usage: herd {group}")


def test_the_version_is_told(herd: HerdCommand) -> None:
    result = herd("--version")
    assert (result.code, result.out, result.err) == (0, f"herd {__version__}\n", "")


@pytest.mark.parametrize(
    "words", [("--help",), ("run", "--help"), ("train", "--help"), ("--version",), ("completion", "bash"), ("config", "show")]
)
def test_help_and_what_needs_no_model_load_nothing_heavy(words: tuple[str, ...]) -> None:
    program = (
        "import sys, json; from herd.cli.app import run; code = run(sys.argv[1:]); print(json.dumps([code, *sys.modules]), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True, env=environment(), check=True)
    code, *modules = json.loads(done.stderr)
    assert code == 0 and done.stdout
    assert [name for name in HEAVY if name in modules] == []


def test_what_is_usually_typed_has_short_names(herd: HerdCommand) -> None:
    text = herd("run", "--help").out
    assert "-m, --model" in text and "-t, --temperature" in text
    assert "-o, --output" in herd("train", "--help").out and "-q, --quantisation" in herd("convert", "--help").out
