"""The models that are served: the engine's own, and those of every provider of `herd.toml`, found by any of their names.

A name is bare (`cria`), prefixed (`herd/cria`, `lab/llama-70b`) or an alias. The engine's model goes before remote ones of the same bare
name, and providers before each other in the order of the file; prefixed names are never ambiguous. Asks no network.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from herd.base.errors import did_you_mean
from herd.inference.providers import LOCAL, ModelType, ProviderConfig
from herd.inference.remote import AsyncRemoteModel
from herd.stack.errors import RequestError


@dataclass(frozen=True, kw_only=True, slots=True)
class ServedModel:
    """A model that can be asked.

    Attributes:
        id: the name that answers tell.
        provider: whose it is; `herd` for the engine of this process.
        resource: the provider's own name for it.
        aliases: other names for it, without prefixed ones.
        type: what it can be asked for.
        context: tokens of a prompt and its answer, where that is known without asking.
        remote: where it is asked; None for the engine.
    """

    id: str
    provider: str
    resource: str
    aliases: tuple[str, ...] = ()
    type: ModelType = "llm"
    context: int | None = None
    remote: AsyncRemoteModel | None = None


class ServedModels:
    """All of them. Close it in the loop that asks them."""

    def __init__(self, local: str, providers: Sequence[ProviderConfig] = ()) -> None:
        self.local = ServedModel(id=local, provider=LOCAL, resource=local)
        self.providers = tuple(providers)
        self.remotes = tuple(
            ServedModel(
                id=f"{provider.name}/{model.id}",
                provider=provider.name,
                resource=model.id,
                aliases=model.aliases,
                type=model.type,
                context=model.context,
                remote=AsyncRemoteModel(provider, model.id),
            )
            for provider in providers
            for model in provider.models
        )
        self._names: dict[str, ServedModel] = {"": self.local, local: self.local, f"{LOCAL}/{local}": self.local}
        for model in self.remotes:
            for name in (model.id, *(f"{model.provider}/{alias}" for alias in model.aliases)):
                self._names.setdefault(name, model)
        for model in self.remotes:
            for name in (model.resource, *model.aliases):
                self._names.setdefault(name, model)

    @property
    def all(self) -> tuple[ServedModel, ...]:
        """The engine's first."""
        return (self.local, *self.remotes)

    def serves(self, name: str) -> bool:
        """Whether a name is that of a model."""
        return name in self._names

    def find(self, name: str) -> ServedModel:
        """A model by any of its names; the engine's for an empty one. Raises RequestError for one that is not served."""
        found = self._names.get(name)
        if found is None:
            hint = did_you_mean(name, [known for known in self._names if known], otherwise=f"this server has {self.local.id!r}")
            raise RequestError("not_found", f"there is no model {name!r:.200} here", hint=hint, param="model")
        return found

    def find_local(self, name: str, what: str) -> ServedModel:
        """The engine's model. Raises RequestError for a remote one, of which `what` cannot be had."""
        found = self.find(name)
        if found.remote is not None:
            raise RequestError(
                "usage", f"{found.id!r} is a remote model: {what} is not known here", hint=f"name {self.local.id!r}", param="model"
            )
        return found

    async def close(self) -> None:
        """Close the connections to remotes."""
        for model in self.remotes:
            if model.remote is not None:
                await model.remote.close()
