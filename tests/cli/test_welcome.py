"""`herd` without arguments: what to do next, on stdout, at once."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys

import typer
from herd_command import HerdCommand, environment  # pyright: ignore[reportMissingImports]

from herd.cli.app import app
from herd.cli.welcome import OFFERS, welcome


def test_herd_alone_offers_what_to_do_and_ends_well(herd: HerdCommand) -> None:
    result = herd()
    assert (result.code, result.err) == (0, "")
    assert result.out == welcome() + "\n"
    assert "herd chat" in result.out and "herd doctor" in result.out and "herd --help" in result.out
    assert max(map(len, result.out.splitlines())) <= 120


def test_every_command_that_is_offered_is_one() -> None:
    known = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    for _, rows in OFFERS:
        for command, told in rows:
            words = shlex.split(command)
            assert words[0] == "herd" and words[1] in known and told


def test_the_offer_loads_nothing_heavy() -> None:
    code = "import sys, json; from herd.cli.app import run; code = run([]); print(json.dumps([code, sorted(sys.modules)]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment(), check=True)
    status, modules = json.loads(done.stdout.splitlines()[-1])
    assert status == 0 and not {"torch", "numpy", "prompt_toolkit", "huggingface_hub"} & set(modules)


def test_an_option_alone_is_not_taken_for_nothing(herd: HerdCommand) -> None:
    assert herd("--version").out.startswith("herd ")
    assert herd("--help").out.startswith("Usage: herd")
    assert herd("no-such-command").code == 2
