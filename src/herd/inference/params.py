"""How to choose tokens and when to stop: the parameters of one request, as applications say them. No torch.

`token_params` turns them into the engine's own, which know ids alone; stop texts are watched for here, in `inference`.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import cast

from herd.base.errors import UsageError
from herd.engine.params import TokenParams


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingParams:
    """One request's choices. The defaults are Llama's own reference: temperature 0.6, top-p 0.9.

    Attributes:
        temperature: 0 is greedy; else logits are divided by it.
        top_p: tokens are kept, likeliest first, while the mass before them is at most this; 1 keeps all.
        top_k: keep this many of the likeliest; 0 keeps all.
        min_p: drop tokens below this share of the likeliest one's probability; 0 drops none.
        typical_p: keep the tokens whose surprise is nearest to the expected one, up to this mass; 1 keeps all.
        repetition_penalty: scores of tokens seen in prompt or answer are divided (positive) or multiplied (negative) by it; 1 is off.
        presence_penalty: taken from the score of every token of the answer; 0 is off.
        frequency_penalty: taken from it once for each time it stands in the answer; 0 is off.
        logit_bias: added to the scores of token ids.
        allowed_token_ids: only these can come; None allows all.
        banned_token_ids: these cannot come.
        seed: the same seed, prompt and parameters give the same tokens; None draws one.
        max_tokens: new tokens at most; None goes on to the end of the context.
        min_tokens: the answer cannot end by itself before so many tokens.
        stop: texts that end the answer; they are not part of it unless `include_stop`.
        stop_token_ids: ids that end the answer, besides the model's own end tokens.
        ignore_eos: go on over the model's own end tokens.
        include_stop: keep the stop text that ended the answer.
        logprobs: report each token's log-probability and so many likeliest others; None reports none.
        prompt_logprobs: the same of the prompt's tokens.
    """

    temperature: float = 0.6
    top_p: float = 0.9
    top_k: int = 0
    min_p: float = 0.0
    typical_p: float = 1.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict[int, float])
    allowed_token_ids: tuple[int, ...] | None = None
    banned_token_ids: tuple[int, ...] = ()
    seed: int | None = None
    max_tokens: int | None = None
    min_tokens: int = 0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    include_stop: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None

    def __post_init__(self) -> None:
        if isinstance(cast("object", self.stop), str):
            raise UsageError(f"stop is the text {self.stop!r}, it must be a list of texts", hint=f"write stop=({self.stop!r},)")
        if any(not text for text in self.stop):
            raise UsageError("a stop text is empty", hint="an empty text would end every answer at once; leave it out")
        self.token_params(room=1, model_stops=frozenset())

    def token_params(self, *, room: int, model_stops: frozenset[int]) -> TokenParams:
        """The engine's parameters. `room` is what the context leaves for new tokens, `model_stops` the model's own end tokens."""
        return TokenParams(
            max_tokens=room if self.max_tokens is None else self.max_tokens,
            min_tokens=self.min_tokens,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
            typical_p=self.typical_p,
            repetition_penalty=self.repetition_penalty,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            logit_bias=tuple(sorted(self.logit_bias.items())),
            allowed_ids=self.allowed_token_ids,
            banned_ids=self.banned_token_ids,
            stop_ids=frozenset(self.stop_token_ids) | (frozenset[int]() if self.ignore_eos else model_stops),
            seed=secrets.randbits(48) if self.seed is None else self.seed,
            logprobs=self.logprobs,
            prompt_logprobs=self.prompt_logprobs,
        )
