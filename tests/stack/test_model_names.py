"""Names that keys give to models: as llama-stack-client 0.2.12 registers them, used wherever a model is named, kept, and no one else's."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from live_server import KEYS  # pyright: ignore[reportMissingImports]
from scripted_app import App, Script, scripted  # pyright: ignore[reportMissingImports]

from herd.inference.providers import ProviderConfig, RemoteModelConfig
from scripted_provider import ScriptedProvider, answer_to  # pyright: ignore[reportMissingImports]

ASK: list[Any] = [{"role": "user", "content": "What is a river?"}]


@pytest.fixture(scope="module", name="provider")
def provider_fixture() -> Iterator[ProviderConfig]:
    made = ScriptedProvider()
    models = (RemoteModelConfig(id="script"), RemoteModelConfig(id="vectors", type="embedding"))
    yield ProviderConfig(name="lab", base_url=made.url, models=models)
    made.close()


def run(tmp_path: Path, provider: ProviderConfig, *works: Callable[[App], Coroutine[Any, Any, None]], **settings: Any) -> None:
    """Each work with an application of its own over the same database."""

    async def main() -> None:
        for work in works:
            async with scripted(Script("Water."), tmp_path, providers=(provider,), **settings) as app:
                await work(app)
                await app.service.close()

    asyncio.run(main())


def llama(app: App) -> Any:
    stack = pytest.importorskip("llama_stack_client", reason="needs llama-stack-client 0.2.12")
    return stack.AsyncLlamaStackClient(base_url="http://localhost", http_client=app.http, api_key="none", max_retries=0)


def test_the_stacks_client_registers_uses_and_takes_back_a_name(tmp_path: Path, provider: ProviderConfig) -> None:
    async def register(app: App) -> None:
        made = await llama(app).models.register(model_id="bot", provider_id="herd", provider_model_id="tiny", metadata={"team": "a"})
        assert (made.identifier, made.provider_id, made.provider_resource_id) == ("bot", "herd", "tiny")
        assert made.api_model_type == "llm" and made.metadata["team"] == "a"
        again = await llama(app).models.register(model_id="bot", provider_id="herd", provider_model_id="tiny", metadata={"team": "a"})
        assert again == made

    async def use(app: App) -> None:
        client = llama(app)
        assert [model.identifier for model in await client.models.list()] == ["tiny", "lab/script", "lab/vectors", "bot"]
        assert (await client.models.retrieve("bot")).metadata["team"] == "a"
        answer = await app.openai().chat.completions.create(model="bot", messages=ASK)
        assert answer.choices[0].message.content == "Water." and answer.model == "tiny"
        assert (await app.openai().completions.create(model="bot", prompt="A river")).choices[0].text == "Water."
        assert (await app.openai().responses.create(model="bot", input="?")).output_text == "Water."
        assert (await app.http.post("/tokenize", json={"model": "bot", "prompt": "a"})).status_code == 200
        old = {"model_id": "bot", "messages": ASK}
        assert (await app.http.post("/v1/inference/chat-completion", json=old)).json()["completion_message"]["content"] == "Water."
        await client.models.unregister("bot")
        with pytest.raises(openai.NotFoundError, match="there is no model 'bot'"):
            await app.openai().chat.completions.create(model="bot", messages=ASK)
        assert (await app.http.delete("/v1/models/bot")).status_code == 404

    run(tmp_path, provider, register, use)


def test_a_name_of_a_remote_model_with_slashes(tmp_path: Path, provider: ProviderConfig) -> None:
    async def work(app: App) -> None:
        made = await app.http.post("/v1/models", json={"model_id": "team/bot", "provider_id": "lab", "provider_model_id": "script"})
        assert made.status_code == 200 and made.json()["provider_id"] == "lab"
        messages: list[Any] = [*ASK, {"role": "assistant", "content": "?"}]
        tools: list[Any] = [{"role": "tool", "tool_call_id": str(number), "content": "x"} for number in range(2)]
        answer = await app.openai().chat.completions.create(model="team/bot", messages=[*messages, *tools])
        assert answer.model == "lab/script" and str(answer.choices[0].message.content).strip() == answer_to("What is a river?")
        with pytest.raises(openai.BadRequestError, match="engine's own model alone"):
            await app.openai().chat.completions.create(model="team/bot", messages=ASK, extra_body={"receipt": True})
        assert (await app.http.delete("/v1/models/team/bot")).status_code == 200

    run(tmp_path, provider, work)


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({"model_id": "x", "provider_model_id": "nothing"}, 404, "there is no model 'nothing'"),
        ({"model_id": "x"}, 404, "there is no model 'x'"),
        ({"model_id": "x", "provider_id": "lab", "provider_model_id": "tiny"}, 400, "is of 'herd', not of 'lab'"),
        ({"model_id": "x", "provider_model_id": "vectors", "model_type": "llm"}, 400, "is of type embedding, not llm"),
        ({"model_id": "script", "provider_model_id": "tiny"}, 409, "is the name of a model that is served"),
        ({"model_id": "taken", "provider_model_id": "script"}, 409, "already"),
        ({"model_id": "x\n", "provider_model_id": "tiny"}, 400, "model_id"),
        ({"model_id": "", "provider_model_id": "tiny"}, 400, "model_id"),
    ],
)
def test_what_cannot_be_named_is_refused(tmp_path: Path, provider: ProviderConfig, body: dict[str, Any], status: int, words: str) -> None:
    async def work(app: App) -> None:
        assert (await app.http.post("/v1/models", json={"model_id": "taken", "provider_model_id": "tiny"})).status_code == 200
        told = await app.http.post("/v1/models", json=body)
        assert told.status_code == status and words in told.json()["error"]["message"], told.text
        assert (await app.http.delete("/v1/models/tiny")).status_code == 403
        same = await app.http.post("/v1/models", json={"model_id": "tiny", "provider_id": "herd"})
        assert same.status_code == 200 and same.json()["identifier"] == "tiny"

    run(tmp_path, provider, work)


def test_a_name_is_its_keys_alone_and_says_when_its_model_is_gone(tmp_path: Path, provider: ProviderConfig) -> None:
    async def register(app: App) -> None:
        body = {"model_id": "mine", "provider_model_id": "lab/script"}
        assert (await app.http.post("/v1/models", json=body, headers={"Authorization": f"Bearer {KEYS['anna']}"})).status_code == 200
        bert = app.openai(KEYS["bert"])
        assert "mine" not in [model.id async for model in await bert.models.list()]
        for attempt in (bert.models.retrieve("mine"), bert.chat.completions.create(model="mine", messages=ASK), bert.models.delete("mine")):
            with pytest.raises(openai.NotFoundError):
                await attempt

    async def gone(app: App) -> None:
        anna = app.openai(KEYS["anna"])
        with pytest.raises(openai.NotFoundError, match="stands for 'lab/script', which is not served"):
            await anna.chat.completions.create(model="mine", messages=ASK)
        assert "mine" not in [model.id async for model in await anna.models.list()]

    run(tmp_path, provider, register, keyed=True)
    asyncio.run(_without(tmp_path, gone))


async def _without(tmp_path: Path, work: Callable[[App], Coroutine[Any, Any, None]]) -> None:
    async with scripted(Script("Water."), tmp_path, keyed=True) as app:
        await work(app)
