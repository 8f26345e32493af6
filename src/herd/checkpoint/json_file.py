"""Read a small JSON file that may be hostile (bounded in size, an object, no NaN, no duplicate keys) and take checked values from it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from herd.base.errors import CheckpointError, ConfigError, NotFoundError, did_you_mean

MAX_JSON_BYTES = 100_000_000
MAX_INTEGER = 2**53
MAX_NUMBER = 1e300


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a JSON number")


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {key!r} appears twice")
        found[key] = value
    return found


def parse_json_object(data: bytes, where: str) -> dict[str, Any]:
    """The JSON object in `data`. Raises CheckpointError, naming `where`, if it is none."""
    try:
        parsed = json.loads(data.decode("utf-8"), parse_constant=_no_constant, object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise CheckpointError(f"{where} is not valid JSON: {reason}", hint="the file is damaged: get it again") from error
    if not isinstance(parsed, dict):
        raise CheckpointError(f"{where} holds a JSON {type(parsed).__name__}, not an object", hint="the file is damaged: get it again")
    return parsed


def read_json_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises NotFoundError if there is no file, CheckpointError if it is over 100 MB or malformed."""
    try:
        size = path.stat().st_size
        if size > MAX_JSON_BYTES:
            message = f"{path.name} has {size:,} bytes, over the limit of {MAX_JSON_BYTES:,} for a JSON file"
            raise CheckpointError(message, hint="it is not a file of this format: get it again")
        return parse_json_object(path.read_bytes(), path.name)
    except OSError as error:
        raise NotFoundError(f"cannot read {path}: {error.strerror}", hint="check the path and its permissions") from error


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


@dataclass(frozen=True, kw_only=True, slots=True)
class Fields:
    """A JSON object whose values are taken with their type checked; `where` names it in messages."""

    data: Mapping[str, Any]
    where: str

    def integer(self, key: str, default: int | None = None) -> int:
        """A whole number of at most 2**53 either way."""
        value = self._value(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or abs(value) > MAX_INTEGER:
            raise ConfigError(f"{key} in {self.where} is {_short(value)}, it must be an integer", hint=f"write a whole number for {key}")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A finite number."""
        value = self._value(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= MAX_NUMBER:
            raise ConfigError(f"{key} in {self.where} is {_short(value)}, it must be a finite number", hint=f"write a number for {key}")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        """True or false."""
        value = self._value(key, default)
        if not isinstance(value, bool):
            raise ConfigError(f"{key} in {self.where} is {_short(value)}, it must be true or false", hint=f"write true or false for {key}")
        return value

    def table(self, key: str) -> Fields | None:
        """An object, or None where it is absent or null."""
        value = self.data.get(key)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise ConfigError(f"{key} in {self.where} is {_short(value)}, it must be an object or null", hint=f"write an object for {key}")
        return Fields(data=value, where=f"{key} in {self.where}")

    def _value(self, key: str, default: Any) -> Any:
        value = self.data.get(key)
        if value is not None:
            return value
        if default is None:
            raise ConfigError(f"{self.where} has no {key}", hint=did_you_mean(key, self.data, otherwise=f"add {key} to {self.where}"))
        return default
