"""How to choose tokens and when to stop: the parameters of one request. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from herd.base.errors import UsageError


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingParams:
    """One request's choices. The defaults are Llama's own reference: temperature 0.6, top-p 0.9.

    Attributes:
        temperature: 0 is greedy; else logits are divided by it.
        top_p: tokens are kept, likeliest first, while the mass before them is at most this; 1 keeps all.
        top_k: keep this many of the likeliest; 0 keeps all.
        min_p: drop tokens below this share of the likeliest one's probability; 0 drops none.
        seed: the same seed, prompt and parameters give the same tokens; None draws one.
        max_tokens: new tokens at most; None goes on to the end of the context.
        stop: texts that end the answer; they are not part of it unless `include_stop`.
        stop_token_ids: ids that end the answer, besides the model's own end tokens.
        ignore_eos: go on over the model's own end tokens.
        include_stop: keep the stop text that ended the answer.
    """

    temperature: float = 0.6
    top_p: float = 0.9
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    include_stop: bool = False

    def __post_init__(self) -> None:
        _check("temperature", self.temperature, 0.0 <= self.temperature <= 100.0, "0 (greedy) to 100")
        _check("top_p", self.top_p, 0.0 < self.top_p <= 1.0, "over 0, at most 1")
        _check("top_k", self.top_k, self.top_k >= 0, "0 (off) or more")
        _check("min_p", self.min_p, 0.0 <= self.min_p <= 1.0, "0 (off) to 1")
        _check("max_tokens", self.max_tokens, self.max_tokens is None or self.max_tokens >= 1, "at least 1")
        if isinstance(cast("object", self.stop), str):
            raise UsageError(f"stop is the text {self.stop!r}, it must be a list of texts", hint=f"write stop=({self.stop!r},)")
        if any(not text for text in self.stop):
            raise UsageError("a stop text is empty", hint="an empty text would end every answer at once; leave it out")


def _check(name: str, value: object, good: bool, allowed: str) -> None:
    if not good:
        raise UsageError(f"{name} is {value}, it must be {allowed}", hint=f"set {name} within that range")
