"""A request of the port as the JSON that OpenAI-compatible servers take. What a server's dialect has no word for is refused, by name.

Sampling is always said in full, so that a model answers by the same numbers wherever it runs; a provider's `omit` leaves fields out.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, cast

from herd.base.errors import UsageError
from herd.engine.grammar.spec import Grammar
from herd.inference.params import SamplingParams
from herd.inference.port import Caller, ChatRequest, CompletionRequest
from herd.inference.providers import ProviderConfig
from herd.text.messages import Message

_VLLM = {
    "top_k": "top_k",
    "min_p": "min_p",
    "repetition_penalty": "repetition_penalty",
    "min_tokens": "min_tokens",
    "stop_token_ids": "stop_token_ids",
    "ignore_eos": "ignore_eos",
    "include_stop": "include_stop_str_in_output",
    "allowed_token_ids": "allowed_token_ids",
}
_HERD = {"typical_p": "typical_p", "banned_token_ids": "banned_token_ids"}
_DEFAULTS = SamplingParams()


def chat_body(provider: ProviderConfig, model: str, request: ChatRequest) -> dict[str, Any]:
    """The body of a chat. Raises UsageError for what the server cannot be asked."""
    body: dict[str, Any] = {"model": model, "messages": messages_of(request.messages), "n": request.n}
    body |= _sampling(provider, request.params)
    if request.params.logprobs is not None:
        body |= {"logprobs": True} | ({"top_logprobs": request.params.logprobs} if request.params.logprobs else {})
    if request.builtin_tools:
        if provider.dialect != "herd":
            raise _cannot(provider, "builtin_tools", "give the tool a definition in tools")
        body["builtin_tools"] = list(request.builtin_tools)
    if request.tools:
        body["tools"] = [tool.to_dict() for tool in request.tools]
    if request.tools or request.builtin_tools:
        named = {"type": "function", "function": {"name": request.tool_name}}
        body["tool_choice"] = request.tool_choice if request.tool_name is None else named
        body["parallel_tool_calls"] = request.parallel_tool_calls
    return _finished(provider, body | _structured(provider, request.grammar, chat=True), request.caller)


def completion_body(provider: ProviderConfig, model: str, request: CompletionRequest) -> dict[str, Any]:
    """The body of a completion. Raises UsageError for what the server cannot be asked."""
    prompt = request.prompt if isinstance(request.prompt, str) else list(request.prompt)
    body: dict[str, Any] = {"model": model, "prompt": prompt, "n": request.n} | _sampling(provider, request.params, field="max_tokens")
    if request.params.logprobs is not None:
        body["logprobs"] = request.params.logprobs
    return _finished(provider, body | _structured(provider, request.grammar, chat=False), request.caller)


def _cannot(provider: ProviderConfig, field: str, hint: str) -> UsageError:
    return UsageError(f"the provider {provider.name!r} cannot be asked for {field}", hint=hint)


def _sampling(provider: ProviderConfig, params: SamplingParams, *, field: str | None = None) -> dict[str, Any]:
    body: dict[str, Any] = {"temperature": params.temperature, "top_p": params.top_p}
    for name in ("presence_penalty", "frequency_penalty"):
        if getattr(params, name):
            body[name] = getattr(params, name)
    if params.max_tokens is not None:
        body[field or provider.max_tokens_field] = params.max_tokens
    if params.seed is not None:
        body["seed"] = params.seed
    if params.stop:
        body["stop"] = list(params.stop)
    if params.logit_bias:
        body["logit_bias"] = {str(token_id): bias for token_id, bias in params.logit_bias.items()}
    if params.prompt_logprobs is not None:
        raise _cannot(provider, "prompt_logprobs", "only the engine of this process scores prompts")
    known = _VLLM if provider.dialect == "vllm" else _VLLM | _HERD if provider.dialect == "herd" else {}
    for name in (*_VLLM, *_HERD):
        value: Any = getattr(params, name)
        if value != getattr(_DEFAULTS, name):
            if name not in known:
                raise _cannot(provider, name, "leave it out, or set the provider's dialect to vllm or herd if the server takes it")
            body[known[name]] = list(cast("tuple[int, ...]", value)) if isinstance(value, tuple) else value
    return body


def _structured(provider: ProviderConfig, grammar: Grammar | None, *, chat: bool) -> dict[str, Any]:
    if grammar is None:
        return {}
    if chat and grammar.kind == "json_object":
        return {"response_format": {"type": "json_object"}}
    if chat and grammar.kind == "json_schema":
        schema = {"name": "answer", "schema": json.loads(grammar.text), "strict": True}
        return {"response_format": {"type": "json_schema", "json_schema": schema}}
    if provider.dialect == "openai" or grammar.kind == "tools":
        raise _cannot(
            provider, f"a grammar of kind {grammar.kind}", "ask for JSON in a chat, or set the provider's dialect to vllm or herd"
        )
    if grammar.kind == "json_object":
        return {"structured_outputs": {"json_object": True}}
    name = {"json_schema": "json", "regex": "regex", "choice": "choice", "lark": "grammar"}[grammar.kind]
    text = json.loads(grammar.text) if grammar.kind in ("json_schema", "choice") else grammar.text
    return {"structured_outputs": {name: text}}


def _finished(provider: ProviderConfig, body: dict[str, Any], caller: Caller) -> dict[str, Any]:
    body |= {"stream": True, "stream_options": {"include_usage": True}}
    if body["n"] == 1:
        del body["n"]
    if caller.salt and provider.dialect != "openai":
        # Who asks is nobody's business there; that two are not the same one is.
        body["cache_salt"] = hashlib.sha256(caller.salt).hexdigest()
    return {name: value for name, value in body.items() if name not in provider.omit}


def messages_of(messages: tuple[Message, ...]) -> list[dict[str, Any]]:
    """Messages in OpenAI's shape. Calls and results that carry no id, since Llama's format needs none, are given matching ones."""
    out: list[dict[str, Any]] = []
    waiting: list[str] = []
    count = 0
    for message in messages:
        data = message.to_dict()
        if message.role == "assistant":
            waiting = []
            for call in data.get("tool_calls", ()):
                count += 1
                call["id"] = call["id"] or f"call_{count}"
                waiting.append(call["id"])
            if data.get("tool_calls") and not data["content"]:
                data["content"] = None
        elif message.role == "tool":
            given = data.get("tool_call_id")
            chosen = given if given else waiting[0] if waiting else "call_0"
            waiting = [one for one in waiting if one != chosen]
            data["tool_call_id"] = chosen
            data.pop("name", None)
        out.append(data)
    return out


def embedding_body(
    provider: ProviderConfig, model: str, texts: list[Any], dimensions: int | None, more: Mapping[str, Any]
) -> dict[str, Any]:
    """The body of embeddings."""
    body: dict[str, Any] = {"model": model, "input": texts, "encoding_format": "float"}
    if dimensions is not None:
        body["dimensions"] = dimensions
    if provider.dialect == "herd":
        body |= more
    return {name: value for name, value in body.items() if name not in provider.omit}
