"""`herd.LLM`: a model by name, path or object, and three ways to ask it. What a script needs, over the inference port.

llm = herd.LLM()                                   # cria, the bundled model
print(llm.chat([herd.Message.user("Hello!")]).text)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast, overload

import torch

from herd.base.errors import UsageError
from herd.checkpoint.load import load_model
from herd.checkpoint.resolve import load_checkpoint_tokenizer, resolve_model
from herd.engine.build import build_engine
from herd.engine.engine import Engine
from herd.engine.grammar.compiler import GrammarCompiler
from herd.engine.grammar.spec import Grammar
from herd.engine.memory import EngineConfig
from herd.inference.local import LocalModel
from herd.inference.params import SamplingParams
from herd.inference.port import (
    ChatRequest,
    CompletionRequest,
    Event,
    Finished,
    FinishReason,
    Timings,
    TokenLogprob,
    ToolChoice,
    Usage,
    to_dict,
)
from herd.inference.prepare import grammar_compiler
from herd.model.config import ModelConfig
from herd.model.transformer import Transformer
from herd.text.messages import Message, ToolCall, ToolDefinition, as_messages, as_tools
from herd.text.prompt import PromptFormat
from herd.text.tokenizer import Tokenizer

DEFAULT_MODEL = "cria"


@dataclass(frozen=True, kw_only=True, slots=True)
class Output:
    """A finished answer."""

    text: str
    message: Message
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    usage: Usage
    timings: Timings
    logprobs: tuple[TokenLogprob, ...] = ()

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        """The calls that the model asks for."""
        return self.message.tool_calls

    def to_dict(self) -> dict[str, Any]:
        """The JSON that `herd run --json` prints."""
        return to_dict(self._finished())

    def _finished(self) -> Finished:
        return Finished(
            reason=self.finish_reason,
            text=self.text,
            message=self.message,
            token_ids=self.token_ids,
            usage=self.usage,
            timings=self.timings,
            logprobs=self.logprobs,
        )


def _output(events: Iterable[Event]) -> Output:
    """Run a stream to its end."""
    last: Event | None = None
    for event in events:
        last = event
    assert isinstance(last, Finished)
    return Output(
        text=last.text,
        message=last.message,
        token_ids=last.token_ids,
        finish_reason=last.reason,
        usage=last.usage,
        timings=last.timings,
        logprobs=last.logprobs,
    )


def _spread(
    model: Transformer | Path,
    engine: EngineConfig | None,
    dtype: torch.dtype | str | None,
    device: torch.device | str | None,
    *,
    tp: int,
    pp: int,
    vocab_size: int,
    grammars: Callable[[], GrammarCompiler],
) -> tuple[Engine, ModelConfig]:
    """An engine over several processes, and the whole model's config."""
    if device is not None and torch.device(device).type != "cpu":
        raise UsageError(f"tp and pp spread a model over processes on the CPU, not on {device}", hint='pass device="cpu"')
    from herd.engine.parallel.build import build_parallel_engine

    built = build_parallel_engine(model, engine, tp=tp, pp=pp, dtype=dtype, vocab_size=vocab_size, grammars=grammars)
    return built, built.model_config


class LLM:
    """A model that answers.

    Args:
        model: a `Transformer`, a path, a hub name (ORG/NAME) or an alias; cria by default.
        tokenizer: needed with a `Transformer`; else taken from the checkpoint.
        dtype: of the weights; None keeps the checkpoint's.
        device: "cpu", "cuda", ...; None takes a GPU where there is one.
        prompt_format: how conversations are rendered.
        engine: the engine's sizes: context, cache, memory limit.
        tp, pp: processes that share every layer, and stages that have the layers behind one another: the model is spread over tp x pp
            processes on the CPU, this one among them.

    Raises:
        ConfigError: the model cannot be split so.
        DoesNotFitError: the engine's memory limit leaves no room for one sequence of the context.
    """

    def __init__(
        self,
        model: Transformer | str | Path = DEFAULT_MODEL,
        *,
        tokenizer: Tokenizer | None = None,
        dtype: torch.dtype | str | None = None,
        device: torch.device | str | None = None,
        prompt_format: PromptFormat | None = None,
        engine: EngineConfig | None = None,
        tp: int = 1,
        pp: int = 1,
    ) -> None:
        if isinstance(model, Transformer):
            if tokenizer is None:
                raise UsageError("a Transformer came without its tokenizer", hint="pass tokenizer=herd.load_tokenizer(path)")
            self.name = "model"
        else:
            self.name = str(model)
            model = resolve_model(model)
            tokenizer = tokenizer or load_checkpoint_tokenizer(model)
        size = tokenizer.vocab_size
        grammars = partial(grammar_compiler, tokenizer, size)
        self._model: Transformer | None = None
        if (tp, pp) != (1, 1):
            built, self.config = _spread(model, engine, dtype, device, tp=tp, pp=pp, vocab_size=size, grammars=grammars)
        else:
            if isinstance(model, Path):
                model = load_model(model, dtype=dtype, device=device or ("cuda" if torch.cuda.is_available() else "cpu"))
            self._model, self.config = model, model.config
            built = build_engine(model, engine, vocab_size=size, grammars=grammars)
        self.inference = LocalModel(built, tokenizer, prompt_format=prompt_format)

    @property
    def model(self) -> Transformer:
        """The weights. Raises UsageError where they are spread over several processes."""
        if self._model is None:
            raise UsageError("this model's weights are spread over several processes", hint="leave out tp and pp to have them here")
        return self._model

    def close(self) -> None:
        """Stop the engine and let go of its thread. What is in flight fails."""
        self.inference.engine.close()

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer."""
        return self.inference.tokenizer

    @property
    def context(self) -> int:
        """Tokens that a prompt and its answer may have together."""
        return self.inference.context

    @overload
    def generate(self, prompts: str, params: SamplingParams | None = None, *, grammar: Grammar | None = None) -> Output: ...  # pyright: ignore[reportOverlappingOverload]

    @overload
    def generate(
        self, prompts: Sequence[str] | Sequence[Sequence[int]], params: SamplingParams | None = None, *, grammar: Grammar | None = None
    ) -> list[Output]: ...

    def generate(
        self,
        prompts: str | Sequence[str] | Sequence[Sequence[int]],
        params: SamplingParams | None = None,
        *,
        grammar: Grammar | None = None,
    ) -> Output | list[Output]:
        """Go on with plain text: one prompt gives one `Output`, a list (of texts, or of lists of token ids) gives a list.

        All prompts run at once, and the answers are those that each would have alone. `grammar` is what each has to look like.
        Raises ContextOverflowError, TokenizerError for any of the prompts before the first is answered.
        """
        if isinstance(prompts, str):
            return self.generate([prompts], params, grammar=grammar)[0]
        if any(isinstance(cast("object", prompt), int) for prompt in prompts):
            raise UsageError("the prompts are a list of token ids, not of prompts", hint="put the ids into a list: generate([ids])")
        chosen = params or SamplingParams()
        requests = [
            CompletionRequest(prompt=prompt if isinstance(prompt, str) else tuple(prompt), grammar=grammar, params=chosen)
            for prompt in prompts
        ]
        streams = [self.inference.complete(request) for request in requests]
        return [_output(stream) for stream in streams]

    def chat(
        self,
        messages: Iterable[Message | Mapping[str, Any]],
        params: SamplingParams | None = None,
        *,
        tools: Iterable[ToolDefinition | Mapping[str, Any]] = (),
        builtin_tools: Sequence[str] = (),
        tool_choice: ToolChoice = "auto",
        tool_name: str | None = None,
        grammar: Grammar | None = None,
    ) -> Output:
        """Answer a conversation. Messages and tools may be dicts in OpenAI's shape.

        Args:
            messages: the conversation.
            params: how tokens are chosen.
            tools: what the model may call; its calls fit their parameters.
            builtin_tools: names that the model knows (brave_search, wolfram_alpha, code_interpreter).
            tool_choice: `auto`, `none` or `required`; `tool_name` names the one that has to be called.
            tool_name: see above.
            grammar: what the answer has to look like, such as `Grammar.json_schema({...})`; goes without tools.

        Raises FormatError, ContextOverflowError, UsageError.
        """
        events = self.stream(
            messages, params, tools=tools, builtin_tools=builtin_tools, tool_choice=tool_choice, tool_name=tool_name, grammar=grammar
        )
        return _output(events)

    def stream(
        self,
        messages: Iterable[Message | Mapping[str, Any]],
        params: SamplingParams | None = None,
        *,
        tools: Iterable[ToolDefinition | Mapping[str, Any]] = (),
        builtin_tools: Sequence[str] = (),
        tool_choice: ToolChoice = "auto",
        tool_name: str | None = None,
        grammar: Grammar | None = None,
    ) -> Iterator[Event]:
        """As `chat`, event by event; the last one is `Finished`."""
        request = ChatRequest(
            messages=tuple(as_messages(messages)),
            tools=tuple(as_tools(tools)),
            builtin_tools=tuple(builtin_tools),
            tool_choice=tool_choice,
            tool_name=tool_name,
            grammar=grammar,
            params=params or SamplingParams(),
        )
        return self.inference.chat(request)
