"""Whether the GPU runner is right on this very GPU: a token's bits alone, among others and in chunks, and cria's answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu_model import random_model
from herd.checkpoint.load import load_model
from herd.checkpoint.resolve import resolve_model
from herd.engine.batch import Piece, ragged
from herd.engine.build import build_engine
from herd.engine.engine import Engine
from herd.engine.gpu.runner import GpuRunner
from herd.engine.memory import EngineConfig
from herd.engine.params import TokenParams
from herd.engine.stream import TokenRequest, Tokens
from herd.model.config import ModelConfig
from herd.model.transformer import Transformer

PROMPTS = 16
CLOSE = 0.2
"""What log-probabilities on the GPU may be from those on the CPU in bfloat16, which rounds elsewhere; noise is far more."""


def far(one: Tensor, other: Tensor) -> float:
    """The largest difference of log-probabilities."""
    return float((one.float().log_softmax(-1) - other.float().log_softmax(-1)).abs().max())


def check(config: ModelConfig, kind: str, device: str, *, length: int = 600) -> dict[str, Any]:
    """Scores of a prompt whole, in chunks and token by token, and of its last token among 40 others, on two layers: the same bits.

    Also how far they are from what the model itself computes by torch's products. Where bits differ, how many scores do and by how much.
    """
    model = random_model(replace(config, num_hidden_layers=2), kind, device)
    blocks = -(-length // 16)
    sizes: dict[str, Any] = {"num_blocks": 2 * blocks + 50, "block_size": 16, "max_tokens": length, "score_rows": 64}
    runner = GpuRunner(model, max_sequences=64, context=length, **sizes)
    tokens = [(7919 * at + 13) % config.vocab_size for at in range(length)]
    table = list(range(blocks))

    def last(pieces: list[Piece]) -> Tensor:
        return torch.cat([torch.from_numpy(part.copy()) for _, part in runner.run(ragged(pieces))])[0]

    def piece(begin: int, end: int) -> Piece:
        return Piece(tokens=tokens[begin:end], first=begin, blocks=table, rows=range(end - 1, end))

    whole = last([piece(0, length)])
    again = last([piece(0, length)])
    last([piece(0, length // 3)])
    cut = last([piece(length // 3, length)])
    last([piece(0, length - 1)])
    alone = last([piece(length - 1, length)])
    others = [Piece(tokens=[at], first=0, blocks=[blocks + at], rows=range(1)) for at in range(40)]
    among = last([piece(length - 1, length), *others])
    with torch.inference_mode():
        model_says = model(torch.tensor([tokens], device=device))[0, -1].cpu()
    compared = {"once more": again, "in chunks": cut, "as the next token": alone, "among 40": among}
    found: dict[str, Any] = {"same_bits": all(torch.equal(one, whole) for one in compared.values())}
    for name, one in compared.items():
        if not torch.equal(one, whole):
            found[f"differs {name}"] = (
                f"{int((one != whole).sum())} of {len(whole)} scores, by up to {float((one - whole).abs().max()):.3g}"
            )
    return found | {"finite": bool(whole.isfinite().all()), "largest_difference_of_logprobs_to_torch": far(whole, model_says)}


def _answers(engine: Engine, asked: Sequence[TokenRequest], at_once: int) -> list[list[int]]:
    found: list[list[int]] = []
    for first in range(0, len(asked), at_once):
        streams = [engine.submit(request) for request in asked[first : first + at_once]]
        found += [[token for event in stream if isinstance(event, Tokens) for token in event.ids] for stream in streams]
    return found


def _asked(config: ModelConfig, new: int, **changes: float) -> list[TokenRequest]:
    params = TokenParams(max_tokens=new, **{"temperature": 0.0, **changes})  # type: ignore[arg-type]
    prompts = [
        tuple((number * 131 + 37 * at * at) % 8000 % config.vocab_size for at in range(20 + 17 * number)) for number in range(PROMPTS)
    ]
    return [TokenRequest(prompt=prompt, params=replace(params, seed=number), reuse_prefix=False) for number, prompt in enumerate(prompts)]


def _model(device: str, dtype: torch.dtype) -> Transformer:
    return load_model(resolve_model("cria"), dtype=dtype, device=device)


def _engine(model: Transformer, cache_dtype: str | None) -> Engine:
    sizes = EngineConfig(context=512, token_budget=256, max_sequences=PROMPTS, score_rows=PROMPTS, num_blocks=1024, cache_dtype=cache_dtype)
    return build_engine(model, sizes)


def check_engine(device: str, *, cache_dtype: str | None = None, new: int = 48) -> dict[str, Any]:
    """The bundled model served by this runner: 16 prompts alone, together, with and without steps launched ahead, greedy and drawn.

    All four have to say the same tokens; and the scores of a prompt have to be close to those that torch computes on the CPU.
    """
    model = _model(device, torch.bfloat16)
    found: dict[str, Any] = {"same_tokens": True}
    engine = _engine(model, cache_dtype)
    runner = engine.stepper.runner
    if not isinstance(runner, GpuRunner):
        raise SystemExit(f"cria on {device} is run by {type(runner).__name__}, not by the GPU runner")
    for manner, changes in (("greedy", {}), ("drawn", {"temperature": 0.8, "top_k": 40, "top_p": 0.9})):
        asked, answers = _asked(model.config, new, **changes), dict[str, list[list[int]]]()
        for ahead in (True, False):
            runner.runs_ahead = ahead
            for at_once in (1, PROMPTS):
                answers[f"{at_once} at once, {'ahead' if ahead else 'step by step'}"] = _answers(engine, asked, at_once)
        first, *others = answers
        for name in others:
            differ = sum(one != other for one, other in zip(answers[first], answers[name], strict=True))
            if differ:
                found["same_tokens"] = False
                found[f"{manner}: {name}"] = f"{differ} of {PROMPTS} answers differ from {first}"
    found["steps_taken_ahead"], found["steps_lost"] = engine.stepper.ahead.num_taken, engine.stepper.ahead.num_lost
    prompt = list(_asked(model.config, new)[-1].prompt)[:200]
    rows = ragged([Piece(tokens=prompt, first=0, blocks=list(range(-(-len(prompt) // runner.block_size))), rows=range(len(prompt)))])
    here = torch.cat([torch.from_numpy(part.copy()) for _, part in runner.run(rows)])
    engine.close()
    with torch.inference_mode():
        there = _model("cpu", torch.float32)(torch.tensor([prompt]))[0, :, : here.shape[1]]
    found["largest_difference_of_logprobs_to_cpu"] = far(here, there)
    found["mean_difference_of_logprobs_to_cpu"] = float((here.log_softmax(-1) - there.log_softmax(-1)).abs().mean())
    found["likeliest_token_agrees"] = float((here.argmax(-1) == there.argmax(-1)).float().mean())
    found["close"] = found["mean_difference_of_logprobs_to_cpu"] < CLOSE
    return found
