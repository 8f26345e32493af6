"""From scores to a token: penalties, bans, temperature, top-k, top-p, min-p, typical, and one uniform number by inverse distribution.

A draw depends on the row of scores, the sequence's own tokens and (seed, position): never on what else is in the batch, so a seed replays
under any batching, and a drafted token is verified by drawing at its position and comparing. Rows are worked on one by one in float64.
Greedy takes the lowest id among equals, and so do top-k and top-p at their limits. `draw` has C do the last part. Shapes: V vocabulary.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from herd.base.errors import CheckpointError
from herd.engine.params import TokenParams

Mask = NDArray[np.uint32]
Scores = NDArray[np.float32]
Floats = NDArray[np.float64]
Ids = NDArray[np.int64]
Draw = Callable[[Scores, TokenParams, float], int]
"""Draws the id at a number in [0, 1) of a row's distribution, as `draw_in_numpy`."""


_HIGHEST = 1e30
"""No model scores anything so high; twice of it is still a number in float32."""
_LIKELY = (1e-3, 1e-4)
"""Probabilities that few tokens have: at most a thousand, and ten thousand."""
_MARGIN = 1e-9
"""More than sums of probabilities can be off by rounding."""


@dataclass(slots=True)
class Seen:
    """The tokens of a sequence that penalties look at: which stand in the prompt, and how often each was written."""

    prompt: frozenset[int]
    output: Counter[int] = field(default_factory=Counter[int])

    def add(self, token_id: int) -> None:
        """Count a token that was written."""
        self.output[token_id] += 1


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenLogprobs:
    """Natural log-probabilities at one position, of the model's own distribution: before penalties, bans and temperature.

    `top` are the likeliest ids with theirs, the likeliest first, the lowest id among equals.
    """

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) that is a pure function of seed and position."""
    digest = hashlib.blake2b(f"{seed}/{position}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 11) / 2**53


def seed_of(seed: int, index: int) -> int:
    """The seed of the index-th continuation of one request; the first keeps the request's own."""
    if index == 0:
        return seed
    return int.from_bytes(hashlib.blake2b(f"{seed}/{index}".encode(), digest_size=8).digest(), "little") >> 1


def best_ids(scores_RV: Scores) -> list[int]:
    """The id of the highest score of each row, the lowest among equals; -1 where a row's scores are not finite numbers."""
    # argmax of a row with a NaN: its place. Looked at one by one, since each call of numpy costs a step that has just read all weights
    # from memory its code's way back into the cache.
    return [best if math.isfinite(scores_RV[row, best]) else -1 for row, best in enumerate(scores_RV.argmax(axis=1).tolist())]


def check_best(best: int, position: int) -> None:
    """Raises CheckpointError where `best_ids` found scores that are no numbers: what would be drawn from them is noise."""
    if best < 0:
        raise CheckpointError(
            f"the model's scores for token {position} are not finite numbers",
            hint="its weights are damaged (herd verify MODEL), or its dtype is too narrow for them: try --dtype float32",
        )


def sample(
    scores_V: Scores,
    params: TokenParams,
    seen: Seen | None = None,
    *,
    position: int,
    mask: Mask | None = None,
    best: int | None = None,
    draw: Draw | None = None,
) -> int:
    """The id of the next token, which will stand at `position` of its sequence. `best` is what `best_ids` says of the row, if known.

    `mask` has a bit for each id that a grammar allows, 32 to a word; it is above bans and `min_tokens`: where they leave nothing of it,
    they are passed over. `draw` stands in for `draw_in_numpy`. Raises as `check_best`.
    """
    if best is None:
        [best] = best_ids(scores_V[None])
    check_best(best, position)
    if params.temperature == 0.0 and mask is None and not params.bends_scores:
        return best
    raw = scores_V
    if params.bends_scores:
        scores_V = bent(scores_V, params, seen)
    if mask is not None:
        scores_V = _masked(scores_V, raw, mask)
    if params.temperature == 0.0:
        return int(scores_V.argmax())
    return (draw or draw_in_numpy)(scores_V, params, uniform(params.seed, position))


def draw_in_numpy(scores_V: Scores, params: TokenParams, number: float) -> int:
    """The id at a number in [0, 1) of the distribution."""
    ids, probs = distribution(scores_V, params)
    cumulative = np.cumsum(probs)
    place = int(np.searchsorted(cumulative, number * cumulative[-1], side="right"))
    # Where the sum steps over the mark, a probability is over 0; behind the end, which rounding can reach, the last such token is meant.
    return int(ids[place] if place < ids.size else ids[np.flatnonzero(probs)[-1]])


def _masked(scores_V: Scores, raw_V: Scores, mask: Mask) -> Scores:
    """The scores of the ids that a mask allows, the others at minus infinity; a copy."""
    allowed = np.unpackbits(mask.view(np.uint8), bitorder="little", count=len(scores_V)).view(np.bool_)
    kept = np.where(allowed, scores_V, np.float32(-np.inf))
    return kept if np.isfinite(kept.max()) else np.where(allowed, raw_V, np.float32(-np.inf))


def bent(scores_V: Scores, params: TokenParams, seen: Seen | None) -> Scores:
    """The scores after penalties, bias and bans; a copy. A banned token has minus infinity."""
    scores = scores_V.copy()
    if seen is not None:
        _penalise(scores, params, seen)
    for token_id, bias in params.logit_bias:
        scores[token_id] += bias
    if params.allowed_ids is not None:
        allowed = np.full_like(scores, -np.inf)
        allowed[list(params.allowed_ids)] = scores[list(params.allowed_ids)]
        scores = allowed
    banned = [*params.banned_ids]
    if seen is not None and sum(seen.output.values()) < params.min_tokens:
        banned += sorted(params.stop_ids)
    kept = scores[banned].copy()
    scores[banned] = -np.inf
    if banned and not np.isfinite(scores.max()):
        scores[banned] = kept  # min_tokens would leave nothing: an end is better than noise
    return scores


def _penalise(scores: Scores, params: TokenParams, seen: Seen) -> None:
    if params.repetition_penalty != 1.0:
        known = np.fromiter(seen.prompt | seen.output.keys(), dtype=np.int64)
        values = scores[known].astype(np.float64)
        with np.errstate(over="ignore"):
            values = np.where(values > 0, values / params.repetition_penalty, values * params.repetition_penalty)
        # A penalty next to 0 would make them infinite, and what is drawn from infinities is noise.
        scores[known] = np.clip(values, -_HIGHEST, _HIGHEST)
    if (params.presence_penalty or params.frequency_penalty) and seen.output:
        written = np.fromiter(seen.output, dtype=np.int64)
        counts = np.fromiter(seen.output.values(), dtype=np.float32)
        scores[written] -= params.presence_penalty + params.frequency_penalty * counts


def distribution(scores_V: Scores, params: TokenParams) -> tuple[Ids, Floats]:
    """The tokens that can come, in the order of their ids, and their probabilities, which add up to 1."""
    scores = scores_V.astype(np.float64)
    # The largest score becomes 0 before the division, so that it stays finite; others may reach minus infinity.
    with np.errstate(over="ignore"):
        scores = (scores - scores.max()) / params.temperature
    ids = _top_k(scores, params.top_k)
    probs = _normal(np.exp(scores if ids.size == scores.size else scores[ids]))
    if params.typical_p < 1.0:
        ids, probs = _kept(ids, probs, _typical(probs, params.typical_p))
    if params.top_p < 1.0:
        ids, probs = _kept(ids, probs, _top_p(probs, params.top_p))
    if params.min_p > 0.0:
        ids, probs = _kept(ids, probs, np.flatnonzero(probs >= params.min_p * probs.max()))
    return ids, probs


def _normal(weights: Floats) -> Floats:
    return weights / weights.sum()


def _kept(ids: Ids, probs: Floats, places: Ids) -> tuple[Ids, Floats]:
    return ids[places], _normal(probs[places])


def _top_k(scores: Floats, k: int) -> Ids:
    """Ids of the k highest scores, ascending; of equals at the limit the lowest ids. Banned tokens never count."""
    if not 0 < k < scores.size:
        return np.arange(scores.size) if scores.min() > -np.inf else np.flatnonzero(scores > -np.inf)
    limit = np.partition(scores, scores.size - k)[scores.size - k]
    above, equal = np.flatnonzero(scores > limit), np.flatnonzero(scores == limit)
    chosen = np.concatenate((above, equal[: k - above.size]))
    return np.sort(chosen[scores[chosen] > -np.inf])


def _top_p(probs: Floats, p: float) -> Ids:
    """Places, ascending, of the tokens before which lies a mass of at most p. Only tokens that can be among them are sorted."""
    candidates = _candidates(probs, p)
    order = candidates[np.argsort(-probs[candidates], kind="stable")]
    before = np.cumsum(probs[order]) - probs[order]
    return np.sort(order[before <= p])


def _candidates(probs: Floats, p: float) -> Ids:
    """Places, ascending, among which are all tokens before which lies a mass of at most p."""
    for least in _LIKELY:
        candidates = np.flatnonzero(probs >= least)
        if float(probs[candidates].sum()) > p + _MARGIN:
            return candidates
    # All tokens below (1 - p) / V together weigh less than 1 - p, so a mass over p lies before each of them.
    return np.flatnonzero(probs >= (1.0 - p) / probs.size)


def _typical(probs: Floats, p: float) -> Ids:
    """Places, ascending, of the tokens whose surprise is nearest to the entropy, while the mass before them is below p; at least one."""
    surprise = -np.log(np.maximum(probs, 1e-300))
    order = np.argsort(np.abs(surprise - float((probs * surprise).sum())), kind="stable")
    before = np.cumsum(probs[order]) - probs[order]
    return np.sort(order[before < p])


def logprobs(scores_V: Scores, token_id: int, num_top: int) -> TokenLogprobs:
    """The log-probability of a token and of the likeliest ones, float64 from the raw scores."""
    scores = scores_V.astype(np.float64)
    best = scores.max()
    log_z = best + math.log(float(np.exp(scores - best).sum()))
    ids = _top_k(scores, num_top) if num_top else np.empty(0, dtype=np.int64)
    likeliest = ids[np.argsort(-scores[ids], kind="stable")]
    top = tuple((int(number), float(scores[number] - log_z)) for number in likeliest[:num_top])
    return TokenLogprobs(token_id=token_id, logprob=float(scores[token_id] - log_z), top=top)


def check_ids(ids: Iterable[int], vocab_size: int) -> list[int]:
    """The ids that the model has no row for."""
    return [token_id for token_id in ids if not 0 <= token_id < vocab_size]


def named_ids(params: TokenParams) -> dict[str, Iterable[int]]:
    """Every id that parameters name, by the parameter: for the check at admission."""
    bias: Mapping[int, float] = dict(params.logit_bias)
    return {
        "logit_bias": bias,
        "allowed_ids": params.allowed_ids or (),
        "banned_ids": params.banned_ids,
        "stop_ids": params.stop_ids,
    }
