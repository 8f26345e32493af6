"""Configs in and out: frozen dataclasses to TOML and back, and overrides by dotted path (`pretrain.lr=3e-4`).

Knows dataclasses and their annotations, nothing of what they configure. Unknown keys are refused with the nearest name; a value is
converted by its field's annotation, never guessed. An item of a tuple of dataclasses is reached by its number or by its `name` field.
"""

from __future__ import annotations

import dataclasses
import tomllib
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

import tomli_w

from herd.base.errors import ConfigError, UsageError, did_you_mean

SCHEMA_VERSION = 1
"""Written as `schema_version` on top of every saved config; another number is refused."""

T = TypeVar("T")


def to_dict(config: Any) -> dict[str, Any]:
    """A dataclass as plain dicts, lists and scalars; fields that are None are left out, since TOML has no null."""
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    return {name: _plain(value) for name, value in values.items() if value is not None}


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return to_dict(value)
    if isinstance(value, tuple | list):
        return [_plain(item) for item in cast("Sequence[Any]", value)]
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in cast("Mapping[Any, Any]", value).items()}
    return value


def to_toml(config: Any) -> str:
    """A config as TOML text that `from_toml` reads back to an equal one."""
    return tomli_w.dumps({"schema_version": SCHEMA_VERSION, **to_dict(config)})


def from_toml(cls: type[T], text: str) -> T:
    """Read a config. Raises ConfigError for text that is not TOML, another schema version, an unknown key or a value of the wrong type."""
    try:
        data = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"the config is not TOML: {error}", hint="compare it with the config.toml that a run saves") from error
    version = data.pop("schema_version", SCHEMA_VERSION)
    if version != SCHEMA_VERSION:
        raise ConfigError(f"the config has schema_version {version!r}, this herd reads {SCHEMA_VERSION}", hint="use the herd that wrote it")
    return cast("T", from_dict(cls, data, where=""))


def from_dict(cls: Any, data: Any, *, where: str) -> Any:
    """Build a dataclass from plain data, strictly. `where` is the dotted path so far, for messages."""
    if not isinstance(data, dict):
        raise ConfigError(f"{where or 'the config'} is {type(data).__name__}, it must be a table", hint="give it as [table] or {...}")
    values = cast("dict[str, Any]", data)
    hints = get_type_hints(cls)
    known = {field.name for field in dataclasses.fields(cls)}
    for key in values:
        if key not in known:
            hint = did_you_mean(key, known, otherwise="keys: " + ", ".join(sorted(known)))
            raise ConfigError(f"unknown key {_join(where, key)!r}", hint=hint)
    missing = [field.name for field in dataclasses.fields(cls) if field.name not in values and _required(field)]
    if missing:
        raise ConfigError(f"{_join(where, missing[0])} is missing", hint="every key without a default has to be there")
    return cls(**{key: _convert(value, hints[key], _join(where, key)) for key, value in values.items()})


def _required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _join(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key


def _without_none(hint: Any) -> tuple[Any, bool]:
    """A type without its `| None`, and whether it had one."""
    if get_origin(hint) in (Union, types.UnionType):
        rest = [arg for arg in get_args(hint) if arg is not type(None)]
        if len(rest) == 1:
            return rest[0], True
    return hint, False


def _convert(value: Any, hint: Any, where: str) -> Any:
    """A value of plain data as the annotated type. Raises ConfigError."""
    hint, _ = _without_none(hint)
    origin = get_origin(hint)
    if dataclasses.is_dataclass(hint):
        return from_dict(hint, value, where=where)
    if origin is tuple:
        if not isinstance(value, list):
            raise ConfigError(f"{where} is {value!r}, it must be a list", hint=f"write {where} = [...]")
        return tuple(_convert(item, get_args(hint)[0], f"{where}.{index}") for index, item in enumerate(cast("list[Any]", value)))
    if origin is Literal:
        if value not in get_args(hint):
            choices = [str(choice) for choice in get_args(hint)]
            raise ConfigError(f"{where} is {value!r}", hint=did_you_mean(str(value), choices, otherwise="one of " + ", ".join(choices)))
        return value
    return _scalar(value, hint, where)


def _scalar(value: Any, hint: Any, where: str) -> Any:
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise ConfigError(f"{where} is {value!r}, it must be of type {hint.__name__}", hint=f"write {where} as {hint.__name__}")
    return value


_PARSERS: dict[Any, Callable[[str], Any]] = {int: lambda text: int(text.replace("_", "")), float: float, str: str}
_TRUE, _FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")


def _parse(text: str, hint: Any, where: str) -> Any:
    """An override's text as the annotated type. Raises UsageError."""
    hint, optional = _without_none(hint)
    if optional and text.lower() in ("none", "null", ""):
        return None
    if hint is bool:
        if text.lower() not in (*_TRUE, *_FALSE):
            raise UsageError(f"{where}={text!r} is neither true nor false", hint=f"write {where}=true or {where}=false")
        return text.lower() in _TRUE
    if get_origin(hint) is Literal:
        return _convert(text, hint, where)
    if get_origin(hint) is tuple and not dataclasses.is_dataclass(get_args(hint)[0]):
        return tuple(_parse(part.strip(), get_args(hint)[0], where) for part in text.split(",") if part.strip())
    if hint not in _PARSERS:
        raise UsageError(f"{where} is not a single value", hint=f"name one of its fields, as in {where}.FIELD=VALUE")
    try:
        return _PARSERS[hint](text)
    except ValueError as error:
        raise UsageError(f"{where}={text!r} is not of type {hint.__name__}", hint=f"write {where} as {hint.__name__}") from error


def apply_overrides(config: T, overrides: Sequence[str]) -> T:
    """`config` with every `dotted.path=value` applied, the last one of a path counting.

    Raises UsageError for an unknown path (with the nearest name) or a bad value, ConfigError where the result contradicts itself.
    """
    changes: list[_Change] = []
    for override in overrides:
        path, equals, text = override.partition("=")
        if not equals:
            raise UsageError(f"{override!r} is not an override", hint="overrides look like pretrain.lr=3e-4")
        changes.append(_Change(path=tuple(path.strip().split(".")), text=text.strip(), where=path.strip()))
    return cast("T", _changed(config, changes)) if changes else config


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class _Change:
    """What remains of an override at one level: the path below it, the value's text, and the whole path for messages."""

    path: tuple[str, ...]
    text: str
    where: str

    def below(self) -> _Change:
        return dataclasses.replace(self, path=self.path[1:])


def _changed(config: Any, changes: Sequence[_Change]) -> Any:
    """`config` with all changes made at once, since values that must agree (two vocabulary sizes) would be refused one by one."""
    known = [field.name for field in dataclasses.fields(config)]
    hints = get_type_hints(cast("type[Any]", type(config)))
    values: dict[str, Any] = {}
    below: dict[str, list[_Change]] = {}
    for change in changes:
        name = change.path[0]
        if name not in known:
            raise UsageError(f"unknown key {change.where!r}", hint=did_you_mean(name, known, otherwise="keys here: " + ", ".join(known)))
        if len(change.path) == 1:
            values[name] = _parse(change.text, hints[name], change.where)
        else:
            below.setdefault(name, []).append(change.below())
    for name, deeper in below.items():
        values[name] = _changed_value(values.get(name, getattr(config, name)), deeper)
    return dataclasses.replace(config, **values)


def _changed_value(current: Any, changes: Sequence[_Change]) -> Any:
    """A field's value with changes below it: a dataclass, or a tuple whose items are found by their number or their `name`."""
    if dataclasses.is_dataclass(current):
        return _changed(current, changes)
    if not isinstance(current, tuple) or not current or not dataclasses.is_dataclass(cast("tuple[Any, ...]", current)[0]):
        raise UsageError(
            f"{changes[0].where!r} goes below a value that has no fields: {current!r}", hint="shorten the path, or set it whole"
        )
    items = list(cast("tuple[Any, ...]", current))
    by_item: dict[int, list[_Change]] = {}
    for change in changes:
        by_item.setdefault(_item_number(items, change), []).append(change.below())
    for number, deeper in by_item.items():
        items[number] = _changed(items[number], deeper)
    return tuple(items)


def _item_number(items: Sequence[Any], change: _Change) -> int:
    names = [str(getattr(item, "name", number)) for number, item in enumerate(items)]
    key = change.path[0]
    if key not in names and not (key.isdecimal() and int(key) < len(items)):
        raise UsageError(f"unknown key {change.where!r}", hint=did_you_mean(key, names, otherwise="items here: " + ", ".join(names)))
    if len(change.path) == 1:
        raise UsageError(f"{change.where!r} is not a single value", hint=f"name one of its fields, as in {change.where}.FIELD=VALUE")
    return names.index(key) if key in names else int(key)
