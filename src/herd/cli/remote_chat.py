"""Models of an OpenAI-compatible server that stands in no file: for `herd run` and `herd chat` with --base-url."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from herd.base.errors import NotFoundError

if TYPE_CHECKING:
    from herd.inference.params import SamplingParams
    from herd.inference.port import Event
    from herd.inference.remote import RemoteModel
    from herd.text.messages import Message

KEY_VARIABLE = "HERD_API_KEY"


def open_remote(base_url: str, model: str, api_key: str | None = None) -> RemoteModel:
    """A model of a server. The key is the given one, else that of HERD_API_KEY, else none."""
    from herd.inference.providers import ProviderConfig, RemoteModelConfig
    from herd.inference.remote import RemoteModel

    variable = KEY_VARIABLE if api_key is None and os.environ.get(KEY_VARIABLE) else ""
    models = (RemoteModelConfig(id=model),)
    provider = ProviderConfig(name="remote", base_url=base_url, api_key_env=variable, models=models, dialect="vllm")
    return RemoteModel(provider, model, api_key=api_key)


class RemoteChat:
    """A conversation's partner elsewhere: what `repl.Session` asks of a model. `context` is None where the server does not tell it."""

    def __init__(self, base_url: str, model: str | None, api_key: str | None = None) -> None:
        served = _served(base_url, api_key, needed=model is None)
        self.base_url, self.name = base_url, model or next(iter(served))
        self.context = served.get(self.name)
        self._model = open_remote(base_url, self.name, api_key)

    @property
    def facts(self) -> str:
        """What is told of it."""
        return f"at {self.base_url}" + ("" if self.context is None else f", context {self.context:,} tokens")

    def stream(self, messages: Sequence[Message], params: SamplingParams) -> Iterator[Event]:
        """Answer a conversation. Raises RemoteError, UsageError."""
        from herd.inference.port import ChatRequest

        return self._model.chat(ChatRequest(messages=tuple(messages), params=params))

    def close(self) -> None:
        """Close its connections."""
        self._model.close()


def _served(base_url: str, api_key: str | None, *, needed: bool) -> dict[str, int | None]:
    """The models that a server lists, with their context where it tells. Raises HerdError where it does not and that is `needed`."""
    from herd.base.errors import HerdError

    try:
        with open_remote(base_url, "any", api_key) as asked:
            found = {str(row["id"]): _context_of(row) for row in asked.served()}
    except HerdError:
        if needed:
            raise
        return {}
    if needed and not found:
        raise NotFoundError(f"{base_url} lists no models", hint="name one with --model")
    return found


def _context_of(row: dict[str, Any]) -> int | None:
    told = row.get("max_model_len")
    return told if isinstance(told, int) and told > 0 else None
