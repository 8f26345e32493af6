"""`herd.LLM`: a model by name, path or object, and the ways to ask it. What a script needs, over the inference port.

llm = herd.LLM()                                   # cria, the bundled model
print(llm.chat([herd.Message.user("Hello!")]).text)
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Unpack, overload

import numpy as np
from numpy.typing import NDArray

from herd.engine.grammar.spec import Grammar
from herd.engine.memory import EngineConfig
from herd.engine.pooling import Pooling
from herd.inference.loaded import DEFAULT_MODEL, load
from herd.inference.local import LocalModel
from herd.inference.output import Output, outputs_of
from herd.inference.params import SamplingParams
from herd.inference.port import Event
from herd.inference.requests import ChatOptions, Messages, Prompts, chat_request, check_prompts, completion_requests
from herd.model.config import ModelConfig
from herd.text.prompt import PromptFormat
from herd.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    import torch

    from herd.inference.batch_run import BatchReport
    from herd.inference.score import Score
    from herd.model.transformer import Transformer

__all__ = ["DEFAULT_MODEL", "LLM", "Output"]


class LLM:
    """A model that answers.

    Args:
        model: a `Transformer`, a path, a hub name (ORG/NAME) or an alias; cria by default.
        tokenizer: needed with a `Transformer`; else taken from the checkpoint.
        dtype: of the weights; None keeps the checkpoint's.
        device: "cpu", "cuda", ...; None takes a GPU where there is one.
        prompt_format: how conversations are rendered.
        engine: the engine's sizes: context, cache, memory limit.
        draft: what guesses tokens for the model to verify, so that several come in a step; the answers stay the same. "ngram" looks
            them up in the prompt, a smaller model of the same vocabulary (a `Transformer`, a path, a name) writes them.
        tp, pp: processes that share every layer, and stages that have the layers behind one another: the model is spread over tp x pp
            processes on the CPU, this one among them.

    Raises:
        ConfigError: a draft of another vocabulary or device; a model that cannot be split so.
        UsageError: tp or pp on another device than the CPU.
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
        draft: Transformer | str | Path | None = None,
        tp: int = 1,
        pp: int = 1,
    ) -> None:
        loaded = load(model, tokenizer=tokenizer, dtype=dtype, device=device, engine=engine, draft=draft, threaded=False, tp=tp, pp=pp)
        self.name, self._loaded = loaded.name, loaded
        self.inference = LocalModel(loaded.engine, loaded.tokenizer, prompt_format=prompt_format)

    @property
    def model(self) -> Transformer:
        """The weights. Raises UsageError where they are spread over several processes."""
        return self._loaded.model

    @property
    def config(self) -> ModelConfig:
        """The model's numbers."""
        return self._loaded.config

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
    def generate(  # pyright: ignore[reportOverlappingOverload]
        self, prompts: str, params: SamplingParams | None = None, *, grammar: Grammar | None = None, n: Literal[1] = 1
    ) -> Output: ...

    @overload
    def generate(  # pyright: ignore[reportOverlappingOverload]
        self, prompts: str, params: SamplingParams | None = None, *, grammar: Grammar | None = None, n: int
    ) -> list[Output]: ...

    @overload
    def generate(
        self, prompts: Prompts, params: SamplingParams | None = None, *, grammar: Grammar | None = None, n: Literal[1] = 1
    ) -> list[Output]: ...

    @overload
    def generate(
        self, prompts: Prompts, params: SamplingParams | None = None, *, grammar: Grammar | None = None, n: int
    ) -> list[list[Output]]: ...

    def generate(
        self, prompts: str | Prompts, params: SamplingParams | None = None, *, grammar: Grammar | None = None, n: int = 1
    ) -> Output | list[Output] | list[list[Output]]:
        """Go on with plain text: one prompt gives one `Output`, a list (of texts, or of lists of token ids) gives a list.

        All prompts run at once, and the answers are those that each would have alone. `grammar` is what each has to look like. With `n`
        over 1 there is a list of so many outputs for each prompt, the i-th drawn with a seed of its own; the prompt is read once.
        Raises ContextOverflowError, TokenizerError for any of the prompts before the first is answered.
        """
        requests = completion_requests(prompts, params, grammar=grammar, n=n)
        answers = [self.inference.complete_parts(request) for request in requests]
        found = [outputs_of(answer) for answer in answers]
        asked = found if n > 1 else [outputs[0] for outputs in found]
        return asked[0] if isinstance(prompts, str) else asked

    @overload
    def chat(
        self, messages: Messages, params: SamplingParams | None = None, *, n: Literal[1] = 1, **options: Unpack[ChatOptions]
    ) -> Output: ...

    @overload
    def chat(self, messages: Messages, params: SamplingParams | None = None, *, n: int, **options: Unpack[ChatOptions]) -> list[Output]: ...

    def chat(
        self, messages: Messages, params: SamplingParams | None = None, *, n: int = 1, **options: Unpack[ChatOptions]
    ) -> Output | list[Output]:
        """Answer a conversation. Messages and tools may be dicts in OpenAI's shape.

        Args:
            messages: the conversation.
            params: how tokens are chosen.
            tools: what the model may call; its calls fit their parameters.
            builtin_tools: names that the model knows (brave_search, wolfram_alpha, code_interpreter).
            tool_choice: `auto`, `none` or `required`; `tool_name` names the one that has to be called.
            tool_name: see above.
            grammar: what the answer has to look like, such as `Grammar.json_schema({...})`; goes without tools.
            n: answers; over 1 they come as a list.

        Raises FormatError, ContextOverflowError, UsageError.
        """
        request = chat_request(messages, params, n=n, **options)
        outputs = outputs_of(self.inference.chat_parts(request))
        return outputs if n > 1 else outputs[0]

    def stream(self, messages: Messages, params: SamplingParams | None = None, **options: Unpack[ChatOptions]) -> Iterator[Event]:
        """As `chat`, event by event; the last one is `Finished`."""
        return self.inference.chat(chat_request(messages, params, n=1, **options))

    def embed(self, texts: str | Prompts, pooling: Pooling = "mean", *, normalize: bool = True) -> NDArray[np.float32]:
        """Texts (or lists of token ids) as the rows of an array [N, D]: the final hidden states, pooled.

        Args:
            texts: all are read at once, and each vector is the same bits as alone.
            pooling: the `mean` over all tokens, or the `last` one's.
            normalize: scale each to length 1, so that a dot product is the cosine.

        Raises ContextOverflowError, TokenizerError, UsageError.
        """
        from herd.inference.embed import EmbedReader, as_array, embed_request

        requests = [embed_request(self.tokenizer, text, pooling) for text in check_prompts(texts)]
        vectors = self.inference.read([(request, EmbedReader()) for request in requests])
        return as_array(vectors, normalize=normalize, width=self.config.hidden_size)

    def score(self, prompts: str | Prompts, continuations: Prompts) -> list[Score]:
        """How likely each continuation is after its prompt; one text as `prompts` goes before all of them.

        Prompt and continuation are encoded together and cut where the prompt's own encoding ends, blanks at its end not counted, as
        lm-evaluation-harness does. Raises ContextOverflowError, TokenizerError, UsageError before anything is computed.
        """
        from herd.inference.score import ScoreReader, pairs, score_request

        requests = [score_request(self.tokenizer, prompt, continuation) for prompt, continuation in pairs(prompts, continuations)]
        return self.inference.read([(request, ScoreReader()) for request in requests])

    def run_file(
        self, source: Path | str, target: Path | str, params: SamplingParams | None = None, *, window: int | None = None
    ) -> BatchReport:
        """Answer a file of requests, one JSON object a line, into another; a run that was stopped goes on where it was.

        Args:
            source: lines like `{"custom_id": "a", "messages": [...], "max_tokens": 40}` or with a `prompt`; OpenAI's batch form too.
            target: gets an answer or an error for each line, in the order of their coming.
            params: what the lines leave open.
            window: requests in flight.

        Raises NotFoundError, FormatError for an output that belongs to another input, UsageError.
        """
        from herd.inference.batch_run import run_file

        return run_file(self.inference, source, target, params=params, window=window)
