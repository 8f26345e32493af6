"""How likely a model finds a given continuation of a prompt: the request for it and the reader of what comes. No torch.

Prompt and continuation are encoded together and cut where the prompt's own encoding ends, as lm-evaluation-harness does; blanks at the
prompt's end belong to the continuation, since tokens of Llama begin with their blank. What stands before the continuation is read once and
shared by all that begin alike. Each log-probability is the model's own, with no temperature and no penalties.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from herd.base.errors import TokenizerError, UsageError
from herd.engine.params import TokenParams
from herd.engine.sampler import TokenLogprobs
from herd.engine.stream import PromptLogprobs, TokenEvent, TokenRequest
from herd.inference.port import Caller
from herd.inference.reading import QuietReader
from herd.inference.requests import Prompts, check_prompts
from herd.text.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """A continuation's natural log-probability, the sum of its tokens' `logprobs`.

    `is_greedy` tells whether each of its tokens is the likeliest at its place, so that greedy decoding would write it.
    """

    logprob: float
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    is_greedy: bool


Text = str | Sequence[int]


def score_request(tokenizer: Tokenizer, prompt: Text, continuation: Text, *, caller: Caller | None = None) -> TokenRequest:
    """What the engine is asked. Texts come after <|begin_of_text|>; token ids are taken as they are.

    Raises UsageError for a text beside token ids, TokenizerError for a continuation that leaves no token of its own.
    """
    if isinstance(prompt, str) != isinstance(continuation, str):
        raise UsageError("one of prompt and continuation is a text, the other token ids", hint="give two texts or two lists of ids")
    if isinstance(prompt, str) and isinstance(continuation, str):
        start = prompt.rstrip()
        ids = tokenizer.encode(prompt + continuation, bos=True)
        first = len(tokenizer.encode(start, bos=True))
    else:
        ids, first = [*map(int, prompt), *map(int, continuation)], len(prompt)
    for token_id in ids:
        tokenizer.token_bytes(token_id)
    if not 0 < first < len(ids):
        raise TokenizerError(
            f"the continuation has no token to score: {len(ids)} tokens, {first} of them the prompt's",
            hint="give a prompt and a continuation of one token each at least; where a word goes on, cut before the word",
        )
    who = caller or Caller()
    return TokenRequest(
        prompt=tuple(ids),
        params=TokenParams(max_tokens=1, temperature=0.0, prompt_logprobs=1, prompt_logprobs_from=first),
        tenant=who.tenant,
        salt=who.salt,
        priority=who.priority,
    )


class ScoreReader(QuietReader):
    """Reads the events of one `score_request`."""

    def __init__(self) -> None:
        super().__init__()
        self._found: list[TokenLogprobs] = []

    def take(self, event: TokenEvent) -> None:
        """Keep the log-probabilities."""
        if isinstance(event, PromptLogprobs):
            self._found += event.logprobs

    def result(self) -> Score:
        """The score, once `done`."""
        assert self._found, "the request ended without log-probabilities"
        logprobs = tuple(found.logprob for found in self._found)
        return Score(
            logprob=sum(logprobs),
            token_ids=tuple(found.token_id for found in self._found),
            logprobs=logprobs,
            is_greedy=all(found.top[0][0] == found.token_id for found in self._found),
        )


def pairs(prompts: str | Prompts, continuations: Prompts) -> list[tuple[Text, Text]]:
    """One text with each continuation, or each of as many prompts with its own. Raises UsageError where the counts differ."""
    if isinstance(continuations, str):
        raise UsageError("the continuations are one text, not a list", hint='put it into a list: score("2 + 2 =", [" 4"])')
    after = check_prompts(continuations)
    if isinstance(prompts, str):
        return [(prompts, continuation) for continuation in after]
    before = check_prompts(prompts)
    if len(before) != len(after):
        raise UsageError(
            f"{len(before)} prompts and {len(after)} continuations",
            hint="give one continuation for each prompt, or one text as the prompt of all",
        )
    return list(zip(before, after, strict=True))
