"""Where an agent's model is: in this process by name or object, or on a server by its base URL. Torch is loaded for the first alone."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from herd.base.errors import UsageError
from herd.inference.port import AsyncInference
from herd.inference.providers import ProviderConfig

KEY_VARIABLE = "HERD_API_KEY"


@dataclass(frozen=True, kw_only=True, slots=True)
class _Server(ProviderConfig):
    """A server whose key was given by the caller."""

    given: str = field(default="", repr=False)

    def key(self) -> str:
        """The key that was given, else the variable's."""
        return self.given or os.environ.get(KEY_VARIABLE, "").strip()


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """A model: its name, `bind` which gives the port in the loop that runs, and `close` for what was opened for it."""

    name: str
    bind: Callable[[], AsyncInference]
    close: Callable[[], Awaitable[None]]
    native: bool = False
    """Whether it is asked in Llama's own prompt format, so that tools it knows need no definition."""


async def _nothing() -> None:
    """What another opened is another's to close."""


def source_of(model: Any, *, base_url: str | None, api_key: str | None, load: dict[str, Any]) -> Source:
    """The model of an agent.

    Args:
        model: a name, a path, an `AsyncLLM`, an `LLM`, a `Transformer` (with `tokenizer` in `load`), or any `AsyncInference`.
        base_url: of a server, as https://llm.example.org/v1.
        api_key: of the server; None takes HERD_API_KEY.
        load: further arguments of `AsyncLLM`.

    Raises:
        UsageError: an object beside a URL, or one that is no model.
    """
    if base_url is not None:
        if not isinstance(model, str):
            raise UsageError("base_url names a server, and model is an object", hint="give the name that the server calls the model by")
        if load:
            raise UsageError(f"{next(iter(load))!r} is for a model that is loaded here", hint="leave it out beside base_url")
        from herd.inference.remote import AsyncRemoteModel

        remote = AsyncRemoteModel(_Server(name="agent", base_url=base_url, given=api_key or ""), model)
        return Source(name=model, bind=lambda: remote, close=remote.close)
    if isinstance(model, AsyncInference):
        return Source(name=type(model).__name__, bind=lambda: model, close=_nothing)
    from herd.inference.aio import AsyncModel, ThreadedEngine
    from herd.inference.async_llm import AsyncLLM
    from herd.inference.llm import LLM

    if isinstance(model, AsyncLLM):
        # Of a port for the agent's own loop: the one that the caller's loop is bound to stays as it is.
        engine, tokenizer, prompt_format = model.engine, model.tokenizer, model._prompt_format
        return Source(
            name=model.name, bind=lambda: AsyncModel(ThreadedEngine(engine), tokenizer, prompt_format=prompt_format), close=_nothing
        )
    if isinstance(model, LLM):
        raise UsageError("an LLM runs its engine in the thread that asks", hint="give its name, or a herd.AsyncLLM")
    llm = AsyncLLM(model, **load)
    return Source(name=llm.name, bind=lambda: llm.inference, close=llm.close)
