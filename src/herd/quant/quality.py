"""What quantisation cost: a model beside the one it was made of, on the same text.

    perplexity      exp of the mean negative log-likelihood of the text's tokens
    mean KL         mean over tokens of sum_v p_v log(p_v / q_v), p the original's next-token distribution
    same top        share of tokens whose likeliest next token is the same
    drift           by layer: root mean square of the difference of the residual streams over that of the original's

Both models compute in float32, so that rounding of activations is no part of the difference. Shapes: B sequences, T tokens.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor, nn

from herd.base.errors import ConfigError
from herd.model.transformer import Transformer

Advance = Callable[[int, int, str], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Quality:
    """The figures. `p99_kl` is the divergence that one token in a hundred exceeds; tokens a second are those of scoring the text."""

    num_tokens: int
    perplexity_original: float
    perplexity: float
    mean_kl: float
    p99_kl: float
    same_top: float
    tokens_per_s_original: float
    tokens_per_s: float
    drift: tuple[float, ...]

    @property
    def perplexity_change(self) -> float:
        """Relative change, 0.005 for half a percent more."""
        return self.perplexity / self.perplexity_original - 1.0


class _Streams:
    """The residual stream after every block of the last forward."""

    def __init__(self, model: Transformer) -> None:
        self.after: list[Tensor] = []
        model.block_runner = self._run

    def _run(self, block: nn.Module, *args: object) -> Tensor:
        out = block(*args)
        self.after.append(out)
        return out


def _forward(model: Transformer, streams: _Streams, row_T: Tensor) -> tuple[Tensor, list[Tensor], float]:
    streams.after = []
    started = time.perf_counter()
    logprobs_TV = model(row_T[None])[0].log_softmax(-1)
    return logprobs_TV, streams.after, time.perf_counter() - started


@torch.no_grad()
def compare(original: Transformer, candidate: Transformer, tokens_BT: Int[Tensor, "B T"], progress: Advance | None = None) -> Quality:
    """Run both over the text, a sequence at a time. Raises ConfigError where they have other vocabularies or depths."""
    one, two = original.config, candidate.config
    if (one.vocab_size, one.num_hidden_layers) != (two.vocab_size, two.num_hidden_layers):
        raise ConfigError(
            f"the models have {one.vocab_size:,} and {two.vocab_size:,} tokens, {one.num_hidden_layers} and {two.num_hidden_layers} layers",
            hint="give a model and what was made of it",
        )
    first, second = _Streams(original), _Streams(candidate)
    kls, likelihoods, same, seconds = [], [0.0, 0.0], 0, [0.0, 0.0]
    difference, size = torch.zeros(one.num_hidden_layers), torch.zeros(one.num_hidden_layers)
    for number, row_T in enumerate(tokens_BT):
        if progress is not None:
            progress(number, len(tokens_BT), "")
        p, streams_p, took_p = _forward(original, first, row_T)
        q, streams_q, took_q = _forward(candidate, second, row_T)
        kls.append((p.exp() * (p - q)).sum(-1))
        same += int((p.argmax(-1) == q.argmax(-1)).sum())
        for place, logprobs in enumerate((p, q)):
            likelihoods[place] -= float(logprobs[:-1].gather(-1, row_T[1:, None]).double().sum())
        seconds = [seconds[0] + took_p, seconds[1] + took_q]
        difference += torch.stack([(a - b).square().mean() for a, b in zip(streams_p, streams_q, strict=True)])
        size += torch.stack([a.square().mean() for a in streams_p])
    kl, num, predicted = torch.cat(kls), tokens_BT.numel(), tokens_BT.numel() - len(tokens_BT)
    return Quality(
        num_tokens=num,
        perplexity_original=math.exp(likelihoods[0] / predicted),
        perplexity=math.exp(likelihoods[1] / predicted),
        mean_kl=max(float(kl.mean()), 0.0),
        p99_kl=float(kl.quantile(0.99)),
        same_top=same / num,
        tokens_per_s_original=num / seconds[0],
        tokens_per_s=num / seconds[1],
        drift=tuple((difference / size).sqrt().tolist()),
    )
