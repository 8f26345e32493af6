"""The `herd` command: its groups and the options of every command. What goes wrong is told by `failures`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Annotated

import typer

from herd.cli import (
    agent,
    batch,
    bench,
    cache,
    chat,
    completion,
    config,
    convert,
    data,
    db,
    doctor,
    guard,
    keys,
    launch,
    merge,
    models,
    plan,
    quality,
    quantize,
    replay,
    run_prompt,
    serve,
    show,
    tokenizer,
    tools,
    train,
)
from herd.cli.failures import INTERRUPTED, exit_code
from herd.cli.group import Sections
from herd.cli.output import line, note

app = typer.Typer(
    name="herd",
    cls=Sections,
    help="The whole Llama 3.1 system in one package. `herd chat` talks to cria, the bundled model.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> bool:
    if wanted:
        from herd.version import __version__

        line(f"herd {__version__}")
        raise typer.Exit
    return wanted


@app.callback()
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


_USE, _MODELS, _TRAIN, _MACHINE = "Use a model", "Get and look at models", "Train", "This installation"
app.command("chat", rich_help_panel=_USE)(chat.chat)
app.command("agent", rich_help_panel=_USE)(agent.agent)
app.command("run", rich_help_panel=_USE)(run_prompt.run)
app.command("batch", rich_help_panel=_USE)(batch.batch)
app.command("serve", rich_help_panel=_USE)(serve.serve)
app.command("replay", rich_help_panel=_USE)(replay.replay)
app.command("code", rich_help_panel=_USE)(tools.code)
app.add_typer(tools.app, name="tools", rich_help_panel=_USE)
app.add_typer(guard.app, name="guard", rich_help_panel=_USE)
app.add_typer(keys.app, name="keys", rich_help_panel=_USE)
app.add_typer(db.app, name="db", rich_help_panel=_USE)
app.add_typer(plan.app, name="plan", rich_help_panel=_USE)
app.add_typer(bench.app, name="bench", rich_help_panel=_USE)
app.command("models", rich_help_panel=_MODELS)(models.models)
app.command("pull", rich_help_panel=_MODELS)(models.pull)
app.command("show", rich_help_panel=_MODELS)(show.show)
app.command("convert", rich_help_panel=_MODELS)(convert.convert)
app.command("verify", rich_help_panel=_MODELS)(convert.verify)
app.command("quantize", rich_help_panel=_MODELS)(quantize.quantize)
app.command("quality", rich_help_panel=_MODELS)(quality.quality)
app.command("train", rich_help_panel=_TRAIN)(train.train)
app.command("launch", rich_help_panel=_TRAIN)(launch.launch)
app.add_typer(data.app, name="data", rich_help_panel=_TRAIN)
app.command("merge", rich_help_panel=_TRAIN)(merge.merge)
app.command("average", rich_help_panel=_TRAIN)(merge.average)
app.add_typer(tokenizer.app, name="tokenizer", rich_help_panel=_TRAIN)
app.add_typer(cache.app, name="cache", rich_help_panel=_MACHINE)
app.command("doctor", rich_help_panel=_MACHINE)(doctor.doctor)
app.add_typer(config.app, name="config", rich_help_panel=_MACHINE)
app.command("completion", rich_help_panel=_MACHINE)(completion.completion)


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
        result = app(args=arguments, prog_name="herd", standalone_mode=False)
    except typer.Exit as leave:
        return leave.exit_code
    except (Exception, KeyboardInterrupt) as error:
        return exit_code(error, debug=debug)
    if result == INTERRUPTED:
        note()
    return result if isinstance(result, int) else 0
