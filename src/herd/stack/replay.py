"""Making the answer of a receipt again, in this process, and comparing it token by token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from herd.base.errors import GateError
from herd.engine.stream import Tokens
from herd.stack.receipts import Receipt


@dataclass(frozen=True, kw_only=True, slots=True)
class Again:
    """One continuation, made again."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Replay:
    """What came; `difference` says where it is another answer, `remarks` what else is not as it was."""

    answers: tuple[Again, ...]
    difference: str | None
    logprobs: bool
    remarks: tuple[str, ...]

    @property
    def same(self) -> bool:
        """Whether every token, and every log-probability that the receipt holds, is the same."""
        return self.difference is None

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "same": self.same,
            "difference": self.difference,
            "remarks": list(self.remarks),
            "answers": [{"token_ids": list(answer.token_ids), "text": answer.text} for answer in self.answers],
        }


def replay_receipt(receipt: Receipt, model: str | None = None) -> Replay:
    """Run the request of a receipt on its model, or on the one that is named. Raises GateError where the weights are others."""
    from herd.checkpoint.resolve import resolve_model
    from herd.engine.memory import EngineConfig
    from herd.inference.loaded import load
    from herd.stack.worker import kernels_in_use, weights_digest
    from herd.version import __version__

    path = resolve_model(model or receipt.model)
    digest = weights_digest(path)
    if digest != receipt.weights_sha256:
        raise GateError(
            f"the weights at {path} have the digest {digest[:16]}..., the receipt's {receipt.weights_sha256[:16]}...",
            hint="name the checkpoint that the server had with --model",
        )
    request = receipt.request
    context = len(request.prompt) + request.params.max_tokens
    config = EngineConfig(context=max(context, 2), max_sequences=max(1, min(64, request.n)))
    where = {name: receipt.machine[name] for name in ("dtype", "device", "tp")}
    loaded = load(path, tokenizer=None, engine=config, draft=None, threaded=False, **where)
    engine, tokenizer = loaded.engine, loaded.tokenizer
    ids: dict[int, list[int]] = {index: [] for index in range(request.n)}
    scores: dict[int, list[float]] = {index: [] for index in range(request.n)}
    try:
        for event in engine.submit(request):
            if isinstance(event, Tokens):
                ids[event.index] += event.ids
                scores[event.index] += [found.logprob for found in event.logprobs]
    finally:
        engine.close()
    remarks = [f"herd was {receipt.herd} then, and is {__version__} now"] if receipt.herd != __version__ else []
    if receipt.machine["kernels"] != kernels_in_use(receipt.machine["device"]):
        remarks.append("other kernels compute here than did there")
    answers: list[Again] = []
    difference = None
    for index, (token_ids, logprobs) in sorted(receipt.answers.items()):
        # A stop text ends an answer before the engine would.
        made = tuple(ids[index][: len(token_ids)])
        answers.append(
            Again(token_ids=made, logprobs=tuple(scores[index][: len(token_ids)]), text=tokenizer.decode(made, skip_special=True))
        )
        difference = difference or _difference(index, token_ids, made, logprobs, answers[-1].logprobs)
    told = any(logprobs is not None for _, logprobs in receipt.answers.values())
    return Replay(answers=tuple(answers), difference=difference, logprobs=told, remarks=tuple(remarks))


def _difference(
    index: int, then: tuple[int, ...], now: tuple[int, ...], logprobs: tuple[float, ...] | None, scores: tuple[float, ...]
) -> str | None:
    for place, token_id in enumerate(then):
        if place >= len(now) or now[place] != token_id:
            came = "nothing" if place >= len(now) else str(now[place])
            return f"answer {index}: token {place} was {token_id}, and is {came} now"
    if logprobs is not None and logprobs != scores:
        place = next((place for place, pair in enumerate(zip(logprobs, scores, strict=False)) if pair[0] != pair[1]), 0)
        return f"answer {index}: the tokens are the same, the log-probability of token {place} is not"
    return None
