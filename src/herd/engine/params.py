"""What a caller may ask of the next tokens, in token ids alone: the engine's side of `inference.params.SamplingParams`. No torch.

Stop texts, tools and the text itself are above; the engine sees ids that end, ids that are forbidden and numbers that bend the scores.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from herd.base.errors import UsageError

MAX_LOGPROBS = 128
"""Alternatives that one position may report: the rows are reserved in the arena."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenParams:
    """How the tokens of one sequence are chosen and when it ends. Order of work: penalties, bias, bans, temperature, top-k, top-p, min-p.

    Attributes:
        max_tokens: new tokens at most.
        min_tokens: the ids of `stop_ids` cannot come before this many.
        temperature: 0 takes the likeliest token, the lowest id among equals; else scores are divided by it.
        top_k: keep this many of the likeliest; 0 keeps all.
        top_p: keep a token while the mass before it, likeliest first, is at most this; 1 keeps all.
        min_p: drop tokens below this share of the likeliest one's probability.
        typical_p: keep the tokens whose surprise is nearest to the expected one, up to this mass; 1 keeps all. Meister et al., 2022.
        repetition_penalty: scores of tokens seen in prompt or output are divided (positive) or multiplied (negative) by it; 1 is off.
        presence_penalty: taken from the score of every token of the output; 0 is off.
        frequency_penalty: taken from it once for each time it stands in the output; 0 is off.
        logit_bias: added to the scores of ids.
        allowed_ids: only these can come; None allows all.
        banned_ids: these cannot come.
        stop_ids: these end the sequence.
        seed: with the position, all that a draw depends on.
        logprobs: log-probability of each token and of so many likeliest others; None reports none.
        prompt_logprobs: the same of the prompt's tokens.
        prompt_logprobs_from: the first position of the prompt that is told of; what stands before it may come from the cache.
    """

    max_tokens: int
    min_tokens: int = 0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    allowed_ids: tuple[int, ...] | None = None
    banned_ids: tuple[int, ...] = ()
    stop_ids: frozenset[int] = field(default_factory=frozenset[int])
    seed: int = 0
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    prompt_logprobs_from: int = 1

    def __post_init__(self) -> None:
        for name, allowed, good in _RANGES:
            value = getattr(self, name)
            if not good(value):
                raise UsageError(f"{name} is {value}, it must be {allowed}", hint=f"set {name} within that range")
        for name in ("logprobs", "prompt_logprobs"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= MAX_LOGPROBS:
                raise UsageError(f"{name} is {value}, it must be 0 to {MAX_LOGPROBS}", hint=f"ask for {MAX_LOGPROBS} alternatives at most")
        if self.allowed_ids is not None and not set(self.allowed_ids) - set(self.banned_ids):
            raise UsageError("no token is allowed", hint="allow at least one id that is not banned")

    @property
    def bends_scores(self) -> bool:
        """Whether scores change before the draw."""
        return bool(
            self.repetition_penalty != 1.0
            or self.presence_penalty
            or self.frequency_penalty
            or self.logit_bias
            or self.allowed_ids is not None
            or self.banned_ids
            or self.min_tokens
        )


_Check = Callable[[float], bool]
_RANGES: tuple[tuple[str, str, _Check], ...] = (
    ("max_tokens", "at least 1", lambda value: value >= 1),
    ("min_tokens", "0 (off) or more", lambda value: value >= 0),
    ("prompt_logprobs_from", "at least 1", lambda value: value >= 1),
    ("temperature", "0 (greedy) to 100", lambda value: 0.0 <= value <= 100.0),
    ("top_k", "0 (off) or more", lambda value: value >= 0),
    ("top_p", "over 0, at most 1", lambda value: 0.0 < value <= 1.0),
    ("min_p", "0 (off) to 1", lambda value: 0.0 <= value <= 1.0),
    ("typical_p", "over 0, at most 1", lambda value: 0.0 < value <= 1.0),
    ("repetition_penalty", "over 0, at most 100; 1 is off", lambda value: 0.0 < value <= 100.0),
    ("presence_penalty", "-100 to 100; 0 is off", lambda value: -100.0 <= value <= 100.0),
    ("frequency_penalty", "-100 to 100; 0 is off", lambda value: -100.0 <= value <= 100.0),
)
"""Name, what is allowed, and whether a value is. NaN never is."""
