"""From a body of OpenAI's shape to a request of the inference port. What means nothing here is refused with the field's name."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from herd.base.errors import HerdError
from herd.engine.grammar.spec import Grammar
from herd.inference.params import SamplingParams
from herd.inference.port import Caller, ChatRequest, CompletionRequest, ToolChoice
from herd.inference.providers import LOCAL
from herd.stack.config import Caps
from herd.stack.errors import RequestError
from herd.stack.types import ChatBody, ChatMessage, CompletionBody, NamedTool, ResponseFormat, Sampling, StructuredOutputs, Tool
from herd.text.messages import Message, ToolDefinition, as_messages, as_tools

DEFAULT_COMPLETION_TOKENS = 16


def refuse_over(name: str, value: int, limit: int) -> None:
    """Raises RequestError for more than this server gives."""
    if value > limit:
        raise RequestError("usage", f"{name} is {value:,}, this server allows {limit:,}", hint=f"ask for {limit:,} at most", param=name)


def check_model(name: str, served: str) -> None:
    """Raises RequestError for a model of vectors that is not the engine's."""
    if name and name.removeprefix(f"{LOCAL}/") != served:
        raise RequestError("not_found", f"there is no model {name!r:.200} here", hint=f"this server has {served!r}", param="model")


def stops_of(body: Sampling, caps: Caps) -> tuple[str, ...]:
    """The stop texts of a body."""
    stops = () if body.stop is None else (body.stop,) if isinstance(body.stop, str) else tuple(body.stop)
    refuse_over("stop", len(stops), caps.stops)
    for stop in stops:
        if not stop:
            raise RequestError("usage", "a stop text is empty", hint="leave it out: it would end every answer at once", param="stop")
        if len(stop) > caps.stop_chars:
            message = f"a stop text has {len(stop):,} characters, the most is {caps.stop_chars:,}"
            raise RequestError("usage", message, hint="use a shorter one", param="stop")
    return stops


def params_of(
    body: Sampling, caps: Caps, *, max_tokens: int | None, logprobs: int | None, prompt_logprobs: int | None = None
) -> SamplingParams:
    """The sampling parameters of a body; what it leaves out has herd's defaults."""
    if logprobs is not None:
        refuse_over("logprobs", logprobs, caps.logprobs)
    given: dict[str, Any] = {
        "temperature": body.temperature,
        "top_p": body.top_p,
        "top_k": None if body.top_k is None else max(0, body.top_k),
        "min_p": body.min_p,
        "typical_p": body.typical_p,
        "repetition_penalty": body.repetition_penalty,
        "presence_penalty": body.presence_penalty,
        "frequency_penalty": body.frequency_penalty,
        "logit_bias": None if body.logit_bias is None else {int(key): bias for key, bias in body.logit_bias.items()},
        "allowed_token_ids": None if body.allowed_token_ids is None else tuple(body.allowed_token_ids),
        "banned_token_ids": None if body.banned_token_ids is None else tuple(body.banned_token_ids),
        "seed": body.seed,
        "min_tokens": body.min_tokens,
        "stop_token_ids": None if body.stop_token_ids is None else tuple(body.stop_token_ids),
        "include_stop": body.include_stop_str_in_output,
        "ignore_eos": body.ignore_eos,
        "max_tokens": max_tokens,
        "logprobs": logprobs,
        "prompt_logprobs": prompt_logprobs,
    }
    return SamplingParams(stop=stops_of(body, caps), **{name: value for name, value in given.items() if value is not None})


def grammar_of(structured: StructuredOutputs | None, response: ResponseFormat | None = None) -> Grammar | None:
    """The grammar that a body asks for, if any."""
    named: list[Grammar] = []
    if response is not None and response.type == "json_object":
        named.append(Grammar.json_object())
    elif response is not None and response.type == "json_schema":
        schema = None if response.json_schema is None else response.json_schema.schema_
        if schema is None:
            raise RequestError("format", "response_format has no schema", hint="put it at json_schema.schema", param="response_format")
        named.append(Grammar.json_schema(schema))
    if structured is not None:
        named += _structured(structured)
        if not named:
            raise RequestError(
                "format", "structured_outputs is empty", hint="give json, regex, choice or grammar", param="structured_outputs"
            )
    if len(named) > 1:
        raise RequestError("format", "the answer is to follow several grammars at once", hint="give one", param="structured_outputs")
    return named[0] if named else None


def _structured(given: StructuredOutputs) -> Iterable[Grammar]:
    if given.json_ is not None:
        schema = given.json_
        if isinstance(schema, str):
            try:
                schema = json.loads(schema)
            except (ValueError, RecursionError) as error:
                raise RequestError("format", f"structured_outputs.json is not JSON: {error}", param="structured_outputs") from error
        yield Grammar.json_schema(schema, whitespace=given.whitespace)
    if given.json_object:
        yield Grammar.json_object(whitespace=given.whitespace)
    if given.regex is not None:
        yield Grammar.regex(given.regex)
    if given.choice is not None:
        yield Grammar.choice(given.choice)
    if given.grammar is not None:
        yield Grammar.lark(given.grammar)


def messages_of(messages: Iterable[ChatMessage]) -> tuple[Message, ...]:
    """Messages of the port. Raises RequestError that names the message."""
    found: list[Message] = []
    for number, message in enumerate(messages):
        try:
            found += as_messages([message.model_dump(exclude_none=True)])
        except HerdError as error:
            raise RequestError("format", f"messages[{number}]: {error.message}", hint=error.hint, param=f"messages[{number}]") from error
    return tuple(found)


def tools_of(tools: Iterable[Tool] | None) -> tuple[ToolDefinition, ...]:
    """Tools of the port."""
    return tuple(as_tools([tool.model_dump(exclude_none=True, exclude={"function": {"strict"}}) for tool in tools or ()]))


def chat_request(body: ChatBody, caps: Caps, caller: Caller) -> ChatRequest:
    """The request of a chat body."""
    refuse_over("messages", len(body.messages), caps.messages)
    refuse_over("tools", len(body.tools or ()), caps.tools)
    refuse_over("n", body.n or 1, caps.n)
    if body.top_logprobs and not body.logprobs:
        raise RequestError("usage", "top_logprobs goes with logprobs", hint="set logprobs to true", param="top_logprobs")
    choice: ToolChoice = "auto"
    name = None
    if isinstance(body.tool_choice, NamedTool):
        choice, name = "required", body.tool_choice.function.name
    elif body.tool_choice is not None:
        choice = body.tool_choice
    return ChatRequest(
        messages=messages_of(body.messages),
        tools=tools_of(body.tools),
        builtin_tools=tuple(body.builtin_tools or ()),
        tool_choice=choice,
        tool_name=name,
        parallel_tool_calls=body.parallel_tool_calls is not False,
        grammar=grammar_of(body.structured_outputs, body.response_format),
        n=body.n or 1,
        params=params_of(
            body,
            caps,
            max_tokens=body.max_completion_tokens if body.max_completion_tokens is not None else body.max_tokens,
            logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        ),
        caller=caller,
    )


def prompts_of(prompt: str | list[Any], caps: Caps, *, param: str = "prompt") -> list[str | tuple[int, ...]]:
    """One prompt or several, each a text or token ids."""
    if isinstance(prompt, str):
        return [prompt]
    if not prompt:
        raise RequestError("usage", f"{param} is an empty list", hint="give a text or token ids", param=param)
    if isinstance(prompt[0], int):
        return [tuple(prompt)]
    refuse_over(param, len(prompt), caps.prompts)
    return [one if isinstance(one, str) else tuple(one) for one in prompt]


def completion_requests(body: CompletionBody, caps: Caps, caller: Caller) -> list[CompletionRequest]:
    """A request for each prompt of a completion body. `max_tokens` 0 writes one token, which the route drops."""
    n, best_of = body.n or 1, body.best_of or body.n or 1
    prompts = prompts_of(body.prompt, caps)
    for name, value in (("n", n), ("best_of", best_of)):
        refuse_over(name, value, caps.n)
    refuse_over("n x prompts", best_of * len(prompts), caps.sequences)
    if best_of < n:
        raise RequestError("usage", f"best_of is {best_of} and n is {n}", hint="best_of has to be n or more", param="best_of")
    if best_of > n and body.stream:
        raise RequestError(
            "usage", "best_of cannot be streamed: which are the best is known at the end", hint="leave out stream", param="best_of"
        )
    limit = DEFAULT_COMPLETION_TOKENS if body.max_tokens is None else body.max_tokens
    logprobs = body.logprobs if best_of == n else max(0, body.logprobs or 0)
    params = params_of(body, caps, max_tokens=max(1, limit), logprobs=logprobs, prompt_logprobs=body.logprobs if body.echo else None)
    grammar = grammar_of(body.structured_outputs)
    return [CompletionRequest(prompt=prompt, grammar=grammar, n=best_of, params=params, caller=caller) for prompt in prompts]
