"""Which remote servers there are: the tables `[[providers]]` of `herd.toml`. Read once at start; nothing here asks the network.

    [[providers]]
    name = "lab"
    base_url = "https://llm.example.org/v1"
    api_key_env = "LAB_API_KEY"

    [[providers.models]]
    id = "meta-llama/Llama-3.1-70B-Instruct"
    aliases = ["llama-70b"]

A key is named by the variable that holds it, so that none stands in the file.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, cast
from urllib.parse import urlsplit

from herd.base import settings
from herd.base.errors import ConfigError, did_you_mean

TABLE = "providers"
LOCAL = "herd"
"""The provider that this process itself is."""
Dialect = Literal["openai", "vllm", "herd"]
DIALECTS: tuple[Dialect, ...] = ("openai", "vllm", "herd")
"""What a server takes beyond OpenAI's own fields: nothing, vLLM's, or herd's."""
ModelType = Literal["llm", "embedding"]
MODEL_TYPES: tuple[ModelType, ...] = ("llm", "embedding")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}\Z")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")


def _check_dialect(name: str, dialect: str) -> None:
    if dialect not in DIALECTS:
        raise ConfigError(f"the dialect of provider {name!r} is {dialect!r}", hint="choose " + ", ".join(DIALECTS))


def _check_type(name: str, kind: str) -> None:
    if kind not in MODEL_TYPES:
        raise ConfigError(f"the type of model {name!r} is {kind!r}", hint="choose " + " or ".join(MODEL_TYPES))


@dataclass(frozen=True, kw_only=True, slots=True)
class RemoteModelConfig:
    """One model of a server.

    Attributes:
        id: the server's own name for it.
        aliases: other names that requests may use.
        type: `llm` answers and goes on with text, `embedding` makes vectors.
        context: tokens of a prompt and its answer together, where you know it; told to clients, not enforced here.
    """

    id: str
    aliases: tuple[str, ...] = ()
    type: ModelType = "llm"
    context: int | None = None

    def __post_init__(self) -> None:
        for name in (self.id, *self.aliases):
            if not name.strip() or len(name) > 256 or not name.isprintable():
                raise ConfigError(f"the model's name {name!r:.100} is none", hint="give 1 to 256 printable characters")
        _check_type(self.id, self.type)


@dataclass(frozen=True, kw_only=True, slots=True)
class ProviderConfig:
    """One server.

    Attributes:
        name: its name here; `NAME/MODEL` names a model of it.
        base_url: where its API is, with the `/v1` if it has one.
        api_key_env: the variable that holds its key; empty sends none.
        models: what it serves.
        dialect: what it takes beyond OpenAI's fields.
        timeout_s: seconds between two pieces of an answer, or before its first, after which it is given up.
        connect_timeout_s: seconds to connect; tried again `connect_retries` times, and nothing else is ever sent twice.
        max_tokens_field: OpenAI's newer models want `max_completion_tokens`.
        omit: fields that it refuses and that are left out, such as temperature with reasoning models.
    """

    name: str
    base_url: str
    api_key_env: str = ""
    models: tuple[RemoteModelConfig, ...] = ()
    dialect: Dialect = "openai"
    timeout_s: float = 120.0
    connect_timeout_s: float = 5.0
    connect_retries: int = 2
    max_tokens_field: str = "max_tokens"
    omit: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not _NAME.match(self.name) or self.name == LOCAL:
            raise ConfigError(
                f"the provider's name {self.name!r:.80} is none",
                hint=f"use letters, digits, '_', '-' and '.'; {LOCAL!r} is the engine of this process",
            )
        try:
            parts = urlsplit(self.base_url)
            host, _ = parts.hostname, parts.port
        except ValueError:
            parts, host = urlsplit(""), None
        if parts.scheme not in ("http", "https") or not host or parts.query or parts.fragment or "@" in parts.netloc:
            raise ConfigError(
                f"the base_url of provider {self.name!r} is {self.base_url!r:.200}", hint="write it as https://llm.example.org/v1"
            )
        if self.api_key_env and not _VARIABLE.match(self.api_key_env):
            raise ConfigError(
                f"api_key_env of provider {self.name!r} is no variable's name", hint="name the variable that holds the key, not the key"
            )
        _check_dialect(self.name, self.dialect)
        if self.max_tokens_field not in ("max_tokens", "max_completion_tokens"):
            raise ConfigError(
                f"max_tokens_field of provider {self.name!r} is {self.max_tokens_field!r}",
                hint="choose max_tokens or max_completion_tokens",
            )
        if not (0 < self.timeout_s <= 3600 and 0 < self.connect_timeout_s <= 120 and 0 <= self.connect_retries <= 10):
            raise ConfigError(
                f"the timeouts of provider {self.name!r} are {self.timeout_s:g} s and {self.connect_timeout_s:g} s, "
                f"with {self.connect_retries} retries",
                hint="timeout_s is up to 3600, connect_timeout_s up to 120, connect_retries 0 to 10",
            )

    def key(self) -> str:
        """The key, from its variable; empty where none is wanted. Raises ConfigError where the variable is not set."""
        if not self.api_key_env:
            return ""
        value = os.environ.get(self.api_key_env, "").strip()
        if not value:
            raise ConfigError(
                f"provider {self.name!r} wants the variable {self.api_key_env}, which is not set", hint=f"export {self.api_key_env}=..."
            )
        return value

    @property
    def secret(self) -> bool:
        """Whether a key goes to it."""
        return bool(self.api_key_env)


def load_providers() -> tuple[ProviderConfig, ...]:
    """The providers of `herd.toml`, none where there is no file. Raises ConfigError for what may not stand there."""
    path, tables = settings.read_tables(TABLE)
    found = tuple(_provider(str(path), table) for table in tables)
    names = [provider.name for provider in found]
    twice = next((name for index, name in enumerate(names) if name in names[:index]), None)
    if twice is not None:
        raise ConfigError(f"{path}: two providers are named {twice!r}", hint="give each its own name")
    return found


_KINDS: Mapping[str, tuple[type, ...]] = {
    "connect_retries": (int,),
    "timeout_s": (int, float),
    "connect_timeout_s": (int, float),
    "models": (list,),
    "omit": (list,),
    "aliases": (list,),
    "context": (int,),
}


def _checked(where: str, table: Mapping[str, Any], kind: type, needed: Sequence[str]) -> dict[str, Any]:
    """The table's values, each of a known name and a fitting type; lists as tuples."""
    known = [item.name for item in fields(kind)]
    for key, value in table.items():
        if key not in known:
            raise ConfigError(f"{where}: unknown key {key!r}", hint=did_you_mean(key, known, otherwise="keys: " + ", ".join(known)))
        kinds = _KINDS.get(key, (str,))
        if not isinstance(value, kinds) or isinstance(value, bool):
            raise ConfigError(f"{where}: {key} is {value!r:.80}", hint=f"{key} is of type {kinds[-1].__name__}")
    missing = [key for key in needed if key not in table]
    if missing:
        raise ConfigError(f"{where} has no {missing[0]}", hint=f"add {missing[0]} = ...")
    return {key: tuple(cast("list[Any]", value)) if isinstance(value, list) else value for key, value in table.items()}


def _provider(path: str, table: Mapping[str, Any]) -> ProviderConfig:
    where = f"{path}: provider {table.get('name', '?')!r}"
    values = _checked(where, table, ProviderConfig, ("name", "base_url", "models"))
    for name in ("timeout_s", "connect_timeout_s"):
        if name in values:
            values[name] = float(values[name])
    if not all(isinstance(name, str) for name in values.get("omit", ())):
        raise ConfigError(f"{where}: omit is {values['omit']!r:.80}", hint='write omit = ["temperature"]')
    if not values["models"]:
        raise ConfigError(f"{where} has no models", hint='name those that it serves: models = ["..."]; its GET /models lists them')
    _check_dialect(values["name"], values.get("dialect", "openai"))
    values["models"] = tuple(_model(where, entry) for entry in values["models"])
    return ProviderConfig(**values)


def _model(where: str, entry: Any) -> RemoteModelConfig:
    if isinstance(entry, str):
        return RemoteModelConfig(id=entry)
    if not isinstance(entry, Mapping):
        raise ConfigError(f"{where}: a model is {entry!r:.80}", hint="write a name, or a table [[providers.models]] with an id")
    values = _checked(f"{where}, a model", cast("Mapping[str, Any]", entry), RemoteModelConfig, ("id",))
    if not all(isinstance(name, str) for name in values.get("aliases", ())):
        raise ConfigError(f"{where}: aliases is {values['aliases']!r:.80}", hint='write aliases = ["small"]')
    _check_type(values["id"], values.get("type", "llm"))
    return RemoteModelConfig(**values)
