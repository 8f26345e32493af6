"""The `herd` command: its groups, its options for every command, and the one place where errors become exit codes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Annotated

import typer
from typer._click.exceptions import ClickException

from herd.base.errors import HerdError
from herd.cli import chat, config, convert, doctor, models, run_prompt, show, tokenizer, train
from herd.cli.output import line, note, report_crash, report_error

app = typer.Typer(
    name="herd",
    help="The whole Llama 3.1 system in one package. `herd chat` talks to cria, the bundled model.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        from herd.version import __version__

        line(f"herd {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the whole trace of an error.")] = False,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error [variable: HERD_LOG_LEVEL]")] = None,
) -> None:
    """Options of every command."""
    from herd.base.log import configure

    if debug:
        os.environ["HERD_DEBUG"] = "1"
    configure(log_level)


def _completion(shell: Annotated[str, typer.Argument(help="bash, zsh, fish or powershell")]) -> None:
    """Print a completion script; put it into your shell's start file: herd completion bash >> ~/.bashrc"""
    from typer.completion import get_completion_script

    from herd.base.errors import UsageError, did_you_mean

    shells = ("bash", "zsh", "fish", "powershell")
    if shell not in shells:
        raise UsageError(f"unknown shell {shell!r}", hint=did_you_mean(shell, shells, otherwise="shells: " + ", ".join(shells)))
    line(get_completion_script(prog_name="herd", complete_var="_HERD_COMPLETE", shell=shell))


app.command("chat", rich_help_panel="Use")(chat.chat)
app.command("run", rich_help_panel="Use")(run_prompt.run)
app.command("show")(show.show)
app.command("models")(models.models)
app.command("pull")(models.pull)
app.command("convert")(convert.convert)
app.command("verify")(convert.verify)
app.add_typer(tokenizer.app, name="tokenizer")
app.command("train")(train.train)
app.add_typer(config.app, name="config")
app.command("doctor")(doctor.doctor)
app.command("completion")(_completion)


def run(argv: Sequence[str]) -> int:
    """Run a command line; returns its exit code."""
    try:
        result = app(args=list(argv), prog_name="herd", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except typer.Exit as leave:
        return leave.exit_code
    except (typer.Abort, KeyboardInterrupt):
        note()
        return 130
    except ClickException as error:
        error.show()
        return 2
    except HerdError as error:
        if os.environ.get("HERD_DEBUG"):
            raise
        report_error(error)
        return error.exit_code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1
    except Exception as error:
        if os.environ.get("HERD_DEBUG"):
            raise
        report_crash(error)
        return 1
