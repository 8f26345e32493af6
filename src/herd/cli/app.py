"""The `herd` command: its groups and the options of every command. What goes wrong is told by `failures`.

A command that is named on the command line is the only one whose file is imported, as all of them together take longer than most run.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Any

import typer

from herd.cli import completion
from herd.cli.failures import INTERRUPTED, exit_code
from herd.cli.group import Sections
from herd.cli.output import line, note

if TYPE_CHECKING:
    app: typer.Typer
    """All of it."""

_USE, _MODELS, _TRAIN, _MACHINE = "Use a model", "Get and look at models", "Train", "This installation"
_COMMANDS = {
    "chat": (_USE, "chat"),
    "agent": (_USE, "agent"),
    "run": (_USE, "run_prompt"),
    "batch": (_USE, "batch"),
    "serve": (_USE, "serve"),
    "replay": (_USE, "replay"),
    "code": (_USE, "tools"),
    "tools": (_USE, "tools"),
    "guard": (_USE, "guard"),
    "keys": (_USE, "keys"),
    "db": (_USE, "db"),
    "plan": (_USE, "plan"),
    "bench": (_USE, "bench"),
    "models": (_MODELS, "models"),
    "pull": (_MODELS, "models"),
    "show": (_MODELS, "show"),
    "convert": (_MODELS, "convert"),
    "verify": (_MODELS, "convert"),
    "quantize": (_MODELS, "quantize"),
    "quality": (_MODELS, "quality"),
    "train": (_TRAIN, "train"),
    "launch": (_TRAIN, "launch"),
    "data": (_TRAIN, "data"),
    "merge": (_TRAIN, "merge"),
    "average": (_TRAIN, "merge"),
    "tokenizer": (_TRAIN, "tokenizer"),
    "cache": (_MACHINE, "cache"),
    "doctor": (_MACHINE, "doctor"),
    "config": (_MACHINE, "config"),
    "completion": (_MACHINE, "completion"),
}
"""The heading that a command stands under, and its file, in which it is a function of its name; in `_GROUPS` it is the file's `app`."""
_GROUPS = frozenset({"tools", "guard", "keys", "db", "plan", "bench", "data", "tokenizer", "cache", "config"})


def _version(wanted: bool) -> bool:
    if wanted:
        from herd.version import __version__

        line(f"herd {__version__}")
        raise typer.Exit
    return wanted


def options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the whole trace of an error; goes with any command. [variable: HERD_DEBUG]")
    ] = False,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error. [variable: HERD_LOG_LEVEL; default: info]")] = None,
    log_format: Annotated[
        str | None, typer.Option(help="text, or json: one object a line. [variable: HERD_LOG_FORMAT; default: text]")
    ] = None,
) -> None:
    """Options of every command."""
    from herd.base.log import configure

    configure(log_level, log_format)


def build(names: Iterable[str] = _COMMANDS) -> typer.Typer:
    """The application with these commands."""
    made = typer.Typer(
        name="herd",
        cls=Sections,
        help="The whole Llama 3.1 system in one package. `herd chat` talks to cria, the bundled model.",
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    made.callback()(options)
    for name in names:
        heading, file = _COMMANDS[name]
        module = import_module(f"herd.cli.{file}")
        if name in _GROUPS:
            made.add_typer(module.app, name=name, rich_help_panel=heading)
        else:
            made.command(name, rich_help_panel=heading)(getattr(module, name))
    return made


def __getattr__(name: str) -> Any:
    if name == "app":
        return build()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _named(arguments: Sequence[str]) -> Iterable[str]:
    """The command that stands first, where nothing but --debug is before it; else all of them, one of which may be meant."""
    first = next((word for word in arguments if word != "--debug"), "")
    return (first,) if first in _COMMANDS else _COMMANDS


def _hoisted(argv: Sequence[str]) -> list[str]:
    """`--debug` may stand behind the command too, where the hint of a crash makes people put it. Behind `--` everything is an argument."""
    end = argv.index("--") if "--" in argv else len(argv)
    if "--debug" not in argv[:end]:
        return list(argv)
    return ["--debug", *(word for word in argv[:end] if word != "--debug"), *argv[end:]]


def run(argv: Sequence[str]) -> int:
    """Run a command line; returns its exit code."""
    arguments = _hoisted(argv)
    debug = arguments[:1] == ["--debug"] or bool(os.environ.get("HERD_DEBUG"))
    completion.prepare()
    try:
        result = build(_named(arguments))(args=arguments, prog_name="herd", standalone_mode=False)
    except typer.Exit as leave:
        return leave.exit_code
    except (Exception, KeyboardInterrupt) as error:
        return exit_code(error, debug=debug)
    if result == INTERRUPTED:
        note()
    return result if isinstance(result, int) else 0
