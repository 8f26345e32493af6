"""`herd completion SHELL`: the script that teaches a shell herd's commands and options. The shell then asks herd itself."""

from __future__ import annotations

import os
from typing import Annotated

import typer

_VARIABLE = "_HERD_COMPLETE"
SHELLS = ("bash", "zsh", "fish", "powershell")


def prepare() -> None:
    """Make the parser answer a shell's questions, when it is a shell that asks."""
    if os.environ.get(_VARIABLE):
        from typer.completion import completion_init  # pyright: ignore[reportPrivateImportUsage]

        completion_init()


def completion(shell: Annotated[str, typer.Argument(help="bash, zsh, fish or powershell.")]) -> None:
    """Print a completion script for a shell; put it into its start file: herd completion bash >> ~/.bashrc."""
    from typer.completion import get_completion_script  # pyright: ignore[reportPrivateImportUsage]

    from herd.base.errors import UsageError, did_you_mean
    from herd.cli.output import line

    if shell not in SHELLS:
        raise UsageError(f"unknown shell {shell!r}", hint=did_you_mean(shell, SHELLS, otherwise="shells: " + ", ".join(SHELLS)))
    line(get_completion_script(prog_name="herd", complete_var=_VARIABLE, shell=shell))
