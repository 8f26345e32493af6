"""From what an application asks to what an engine is asked: prompts encoded, parameters translated, grammars chosen. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from herd.base.errors import ContextOverflowError, TokenizerError, UsageError
from herd.engine.grammar.spec import Grammar
from herd.engine.stream import TokenRequest
from herd.inference.answer import AnswerBuilder
from herd.inference.params import SamplingParams
from herd.inference.port import Caller, ChatRequest, CompletionRequest
from herd.text.prompt import PromptFormat
from herd.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from herd.engine.grammar.compiler import GrammarCompiler

MAX_CALLS = 8
"""Calls of one answer at most, where parallel calls are allowed."""


@runtime_checkable
class Sizes(Protocol):
    """What has to be known of an engine."""

    @property
    def context(self) -> int:
        """Tokens that a prompt and its continuation may have together."""
        ...

    @property
    def vocab_size(self) -> int:
        """Ids that the model has scores for."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepared:
    """A request as the engine takes it, and a builder for each of its continuations."""

    tokens: TokenRequest
    builders: tuple[AnswerBuilder, ...]


class Preparer:
    """A tokenizer and a prompt format before an engine. Raises TokenizerError if the tokenizer has ids that the model has no row for."""

    def __init__(self, sizes: Sizes, tokenizer: Tokenizer, prompt_format: PromptFormat | None = None) -> None:
        if tokenizer.vocab_size > sizes.vocab_size:
            raise TokenizerError(
                f"the tokenizer has {tokenizer.vocab_size:,} ids, the model only {sizes.vocab_size:,} rows",
                hint="tokenizer and model belong to different checkpoints",
            )
        self._sizes, self.tokenizer = sizes, tokenizer
        self.prompt_format = prompt_format or PromptFormat()

    def chat(self, request: ChatRequest) -> Prepared:
        """A conversation. Raises FormatError, ContextOverflowError, TokenizerError."""
        # Tools that must not be called are not told of.
        tools, builtin = (request.tools, request.builtin_tools) if request.calls else ((), ())
        ids = self.prompt_format.encode(self.tokenizer, request.messages, tools=tools, builtin_tools=builtin)
        strict = request.calls and (request.strict_tools or request.tool_choice == "required" or request.tool_name is not None)
        grammar = self._tool_grammar(request) if strict else request.grammar
        return self._prepared(ids, request.params, request.n, grammar, request.caller, calls=request.calls)

    def complete(self, request: CompletionRequest) -> Prepared:
        """A text, after <|begin_of_text|>; ids are taken as they are. Raises ContextOverflowError, TokenizerError."""
        prompt = request.prompt
        ids = self.tokenizer.encode(prompt, bos=True) if isinstance(prompt, str) else list(prompt)
        return self._prepared(ids, request.params, request.n, request.grammar, request.caller, calls=False)

    def _tool_grammar(self, request: ChatRequest) -> Grammar:
        return Grammar.tools(
            [{"name": tool.name, "parameters": tool.parameters} for tool in request.tools],
            style=self.prompt_format.tool_style,
            mode="required" if request.tool_choice == "required" else "auto",
            name=request.tool_name,
            builtin=request.builtin_tools,
            max_calls=MAX_CALLS if request.parallel_tool_calls else 1,
        )

    def _prepared(
        self, prompt: Sequence[int], params: SamplingParams, n: int, grammar: Grammar | None, caller: Caller, *, calls: bool
    ) -> Prepared:
        for token_id in (*prompt, *params.stop_token_ids):
            self.tokenizer.token_bytes(token_id)
        room = self._sizes.context - len(prompt)
        if prompt and room < 1:
            raise ContextOverflowError(
                f"the prompt has {len(prompt):,} tokens and the model's context is {self._sizes.context:,}: no room for an answer",
                hint="shorten the prompt or begin a new conversation; nothing was cut",
            )
        if grammar is not None and params.ignore_eos:
            raise UsageError("ignore_eos goes on after the end, and a grammar has one", hint="leave ignore_eos out")
        chosen = params.token_params(room=max(1, room), model_stops=self.tokenizer.stop_ids)
        tokens = TokenRequest(
            prompt=tuple(prompt), params=chosen, n=n, grammar=grammar, tenant=caller.tenant, salt=caller.salt, priority=caller.priority
        )
        build = partial(AnswerBuilder, self.tokenizer, params, calls=calls, num_prompt=len(prompt), ends=chosen.stop_ids)
        return Prepared(tokens=tokens, builders=tuple(build() for _ in range(n)))


def grammar_compiler(tokenizer: Tokenizer, vocab_size: int) -> GrammarCompiler:
    """The compiler of grammars over a tokenizer, for a model of so many rows. Half a second for a vocabulary of 128,000."""
    from herd.engine.grammar.compiler import GrammarCompiler

    return GrammarCompiler(
        [tokenizer.token_bytes(token_id) for token_id in range(tokenizer.vocab_size)],
        special_ids=tokenizer.special_tokens.values(),
        stop_ids=tokenizer.stop_ids,
        python_tag_id=tokenizer.special_tokens.get("<|python_tag|>"),
        split_regex=tokenizer.split_regex,
        vocab_size=vocab_size,
    )
