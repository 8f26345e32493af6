"""Settings that outlive a command: flag > `HERD_*` variable > `herd.toml` > default, and where each value came from.

`herd.toml` is looked for in the working folder, then in herd's home. A command passes its flag; None means it was not given.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from herd.base.errors import ConfigError, did_you_mean
from herd.base.paths import home

FILE_NAME = "herd.toml"
TABLES = ("providers",)
"""Lists of tables in `herd.toml` that are no settings; who uses them checks what is in them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """A setting's name, type, default and what it does."""

    name: str
    kind: type
    default: Any
    help: str

    @property
    def variable(self) -> str:
        """Its environment variable."""
        return "HERD_" + self.name.upper()


SETTINGS: dict[str, Setting] = {
    setting.name: setting
    for setting in (
        Setting(name="model", kind=str, default="cria", help="model of chat and run: a path, a hub name or an alias"),
        Setting(name="device", kind=str, default="auto", help="cpu, cuda or auto"),
        Setting(name="dtype", kind=str, default="auto", help="dtype of the weights: auto (as stored), float32, bfloat16, float16"),
        Setting(name="threads", kind=int, default=0, help="CPU threads; 0 takes all cores"),
        Setting(name="temperature", kind=float, default=0.6, help="sampling temperature of chat and run"),
        Setting(name="top_p", kind=float, default=0.9, help="top-p of chat and run"),
        Setting(name="max_tokens", kind=int, default=512, help="new tokens at most of chat and run"),
        Setting(name="host", kind=str, default="127.0.0.1", help="address that `herd serve` listens on"),
        Setting(name="port", kind=int, default=8321, help="port that `herd serve` listens on"),
        Setting(name="api_key_file", kind=str, default="", help="keys that `herd serve` lets in, one a line"),
        Setting(name="shields", kind=str, default="", help="shields of `herd serve`, with commas; empty takes the default ones, off none"),
        Setting(name="database", kind=str, default="", help="URL of the server's database; empty takes a file in its state directory"),
        Setting(name="files", kind=str, default="", help="folder or fsspec URL of the server's files; empty takes its state directory"),
        Setting(name="code_jail", kind=str, default="auto", help="jail that code runs in: auto, bubblewrap, landlock or off"),
        Setting(name="code_python", kind=str, default="", help="Python that runs code in the jail; empty takes herd's own"),
        Setting(name="searxng_url", kind=str, default="", help="a SearXNG that `web_search` asks"),
        Setting(name="search_index", kind=str, default="", help="an index of files that searches use without a network"),
        Setting(name="files_root", kind=str, default="", help="folder that the file tools may read; empty has none"),
        Setting(name="data", kind=str, default="", help="data folder of `herd train`"),
    )
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Resolved:
    """A setting's value and its source: flag, the variable's name, the file's path or default."""

    name: str
    value: Any
    source: str


def find_file() -> Path | None:
    """The herd.toml that applies, if any."""
    for folder in (Path.cwd(), home()):
        if (folder / FILE_NAME).is_file():
            return folder / FILE_NAME
    return None


def _parsed() -> tuple[Path | None, dict[str, Any]]:
    path = find_file()
    if path is None:
        return None, {}
    import tomllib

    try:
        return path, tomllib.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not TOML: {error}", hint="correct the file; `herd config show` lists the settings") from error


def read_tables(name: str) -> tuple[Path | None, list[dict[str, Any]]]:
    """The file's path and its tables `[[name]]`. Raises ConfigError if they are something else."""
    assert name in TABLES, name
    path, values = _parsed()
    tables = values.get(name, [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):  # pyright: ignore[reportUnknownVariableType]
        raise ConfigError(f"{path}: {name} is no list of tables", hint=f"write [[{name}]] over each of them")
    return path, tables  # pyright: ignore[reportUnknownVariableType]


def read_file() -> tuple[Path | None, dict[str, Any]]:
    """The file's path and values. Raises ConfigError for an unknown key or a value of the wrong type."""
    path, values = _parsed()
    values = {key: value for key, value in values.items() if key not in TABLES}
    for key, value in values.items():
        if key not in SETTINGS:
            hint = did_you_mean(key, SETTINGS, otherwise="settings: " + ", ".join(SETTINGS))
            raise ConfigError(f"{path}: unknown setting {key!r}", hint=hint)
        kind = SETTINGS[key].kind
        if not isinstance(value, (int, float) if kind is float else kind) or isinstance(value, bool):
            raise ConfigError(f"{path}: {key} is {value!r}, it must be of type {kind.__name__}", hint=f"write {key} as {kind.__name__}")
    return path, values


def _from_variable(setting: Setting) -> Any:
    text = os.environ[setting.variable]
    try:
        return setting.kind(text)
    except ValueError as error:
        raise ConfigError(
            f"{setting.variable}={text!r} is not of type {setting.kind.__name__}", hint=f"unset {setting.variable} or correct it"
        ) from error


def resolve(name: str, flag: Any = None) -> Resolved:
    """A setting's value and source. Raises ConfigError if the variable or the file holds something else than it must."""
    setting = SETTINGS[name]
    if flag is not None:
        return Resolved(name=name, value=flag, source="flag")
    if os.environ.get(setting.variable):
        return Resolved(name=name, value=_from_variable(setting), source=setting.variable)
    path, values = read_file()
    if name in values:
        return Resolved(name=name, value=setting.kind(values[name]), source=str(path))
    return Resolved(name=name, value=setting.default, source="default")


def value(name: str, flag: Any = None) -> Any:
    """A setting's value."""
    return resolve(name, flag).value


def resolve_all(flags: Mapping[str, Any] | None = None) -> list[Resolved]:
    """Every setting, in order."""
    return [resolve(name, (flags or {}).get(name)) for name in SETTINGS]
