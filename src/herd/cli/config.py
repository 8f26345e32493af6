"""`herd config show`: every setting, its value and where that came from."""

from __future__ import annotations

import typer

from herd.cli.load import JsonOption

app = typer.Typer(help="The settings that outlive a command.", no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def group() -> None:
    """The settings that outlive a command: flag > HERD_* variable > herd.toml > default."""


@app.command("show")
def show(json: JsonOption = False) -> None:
    """Print each setting's value and its source: flag, variable, file or default."""
    from herd.base.settings import SETTINGS, resolve_all
    from herd.cli.output import print_json, table

    settings = resolve_all()
    if json:
        print_json({setting.name: {"value": setting.value, "source": setting.source} for setting in settings})
        return
    rows = [(item.name, str(item.value), item.source, SETTINGS[item.name].variable, SETTINGS[item.name].help) for item in settings]
    table(rows, ("setting", "value", "source", "variable", "what it is"))
