"""Losses over the vocabulary that never hold the logits of more than one chunk: cross entropy, and log-probabilities of single tokens.

Cross entropy forms the gradient of each chunk's logits while they are in the cache, in the forward pass: softmax minus the one-hot target.
Peak memory is chunk x V instead of tokens x V, and on a CPU the time of several passes over the logits goes with it. Log-probabilities,
whose gradient depends on what is made of them, and any other function of logits (`by_chunks`) compute each chunk again in the backward
pass. The logits stay in the dtype of their product, and one kernel, Triton's or C's, makes losses and gradient of them, in their place;
where neither runs, or ranks share the vocabulary, torch's own operations do. Knows hidden states, the output matrix and targets; nothing
of models or batches. Shapes: N tokens, D model dim, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from herd.kernels import dispatch
from herd.kernels.torch_compat import add_product
from herd.kernels.triton import runtime

IGNORE = -100
"""Target that does not count, as in torch."""

CHUNK = 512
CHUNK_BYTES = 2**30
"""Tokens whose logits exist at once on a CPU, and the bytes of logits that exist at once on a GPU, which so few tokens would starve."""


@runtime_checkable
class Vocabulary(Protocol):
    """Which rows of the output matrix are here: all of them, or those of one rank (`parallel.loss`)."""

    def places(self, targets_N: Tensor) -> tuple[Tensor, Tensor]:
        """The row of every target, and whether it is one that counts and is here."""
        ...

    def whole(self, log_z_N: Tensor, picked_N: Tensor) -> tuple[Tensor, Tensor]:
        """The logs of the normalisers and the logits of the targets over all rows, from those of the rows that are here."""
        ...


class WholeVocabulary:
    """All rows are here."""

    def places(self, targets_N: Tensor) -> tuple[Tensor, Tensor]:
        """Each target is its row."""
        return targets_N.clamp(min=0), targets_N != IGNORE

    def whole(self, log_z_N: Tensor, picked_N: Tensor) -> tuple[Tensor, Tensor]:
        """As they are."""
        return log_z_N, picked_N


def tokens_at_once(device: torch.device, vocab_size: int, itemsize: int) -> int:
    """How many tokens' logits are to exist at once; on a GPU a multiple of 128, which its products are made of."""
    if dispatch.device_type(device) != "cuda":
        return CHUNK
    return max(CHUNK, CHUNK_BYTES // max(1, vocab_size * itemsize) // 128 * 128)


def _is_fused(hidden: Tensor, vocabulary: Vocabulary) -> bool:
    """Whether one kernel makes losses and gradients of the logits: over the whole vocabulary, by Triton on a GPU and by C on a CPU."""
    if type(vocabulary) is not WholeVocabulary or dispatch.fixed_order():
        return False
    if hidden.is_cuda:
        return runtime.why_not(hidden.device) is None
    return dispatch.device_type(hidden.device) == "cuda" or dispatch.native(hidden.device, hidden.dtype) is not None


def _kernel(hidden: Tensor) -> Callable[..., tuple[Tensor, Tensor]]:
    if hidden.is_cuda:
        from herd.kernels.triton.cross_entropy import cross_entropy
    else:
        from herd.kernels.cross_entropy import cross_entropy
    return cross_entropy


def _fused(
    hidden: Tensor, weight: Tensor, targets: Tensor, chunk: int, needs_grad: bool, z_loss: float, out: Tensor | None
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The loss and the gradients of hidden states and weight, by the kernel; the weight's is added up in float32 by the product itself."""
    cross_entropy = _kernel(hidden)
    total = torch.zeros((), dtype=torch.float32, device=hidden.device)
    narrow = weight.to(hidden.dtype)
    grad_hidden = torch.empty_like(hidden) if needs_grad else None
    grad_weight = torch.zeros(weight.shape, dtype=torch.float32, device=weight.device) if needs_grad else None
    for start in range(0, hidden.shape[0], chunk):
        part, target = hidden[start : start + chunk], targets[start : start + chunk]
        logits = part @ narrow.t()
        losses, log_z = cross_entropy(logits, target.contiguous(), ignore=IGNORE, z_loss=z_loss, gradient=needs_grad)
        total += losses.sum()
        if z_loss:
            total += z_loss * log_z.square().sum()
        if out is not None:
            out[start : start + chunk] = losses
        if grad_hidden is not None and grad_weight is not None:
            torch.mm(logits, narrow, out=grad_hidden[start : start + chunk])
            add_product(grad_weight, logits.t(), part)
    return total, grad_hidden, grad_weight


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Sum of -log p(target); saves the finished gradients of hidden states and weight."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        vocabulary: Vocabulary,
        chunk: int,
        needs_grad: bool,
        z_loss: float,
        out: Tensor | None,
    ) -> Tensor:
        if _is_fused(hidden, vocabulary):
            total, *gradients = _fused(hidden, weight, targets, chunk, needs_grad, z_loss, out)
            ctx.save_for_backward(*gradients)
            return total
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        narrow = weight.to(hidden.dtype)
        grad_hidden = torch.empty_like(hidden) if needs_grad else None
        grad_weight = torch.zeros(weight.shape, dtype=torch.float32, device=weight.device) if needs_grad else None
        for start in range(0, hidden.shape[0], chunk):
            part, target = hidden[start : start + chunk], targets[start : start + chunk]
            logits = (part @ narrow.t()).float()
            counted = target != IGNORE
            place, here = vocabulary.places(target)
            index = place[:, None]
            log_z, picked = vocabulary.whole(logits.logsumexp(-1), logits.gather(1, index)[:, 0] * here)
            losses = (log_z - picked) * counted
            total += losses.sum()
            if out is not None:
                out[start : start + chunk] = losses
            if z_loss:
                total += z_loss * (log_z.square() * counted).sum()
            if grad_hidden is not None and grad_weight is not None:
                grad = logits.sub_(log_z[:, None]).exp_()
                if z_loss:
                    grad *= 1 + 2 * z_loss * log_z[:, None]
                grad.scatter_add_(1, index, -here[:, None].to(grad.dtype))
                grad = grad.mul_(counted[:, None]).to(hidden.dtype)
                grad_hidden[start : start + chunk] = grad @ narrow
                grad_weight += grad.t() @ part
        ctx.save_for_backward(grad_hidden, grad_weight)
        return total

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        grad_hidden, grad_weight = ctx.saved_tensors
        scale = grad_outputs[0]
        return grad_hidden * scale.to(grad_hidden.dtype), grad_weight * scale, *[None] * 6


def cross_entropy_sum(
    hidden_ND: Float[Tensor, "N D"],
    weight_VD: Float[Tensor, "V D"],
    targets_N: Int[Tensor, "N"],
    *,
    chunk: int | None = None,
    z_loss: float = 0.0,
    out_N: Float[Tensor, "N"] | None = None,
    vocabulary: Vocabulary | None = None,
) -> Float[Tensor, ""]:
    """Sum, not mean, of the cross entropies in nats, float32: the caller divides by the count over the whole global batch.

    Args:
        hidden_ND: final hidden states, in the compute dtype (the matrix products run in it; the softmax in float32).
        weight_VD: output matrix; its gradient is accumulated in float32.
        targets_N: next-token ids, `IGNORE` where a token does not count.
        chunk: tokens whose logits exist at once; None: 512, on a GPU as many as have 1 GiB of logits.
        z_loss: weight of the square of the log of the softmax's normaliser, added to each counted token's loss.
        out_N: takes each token's cross entropy, without gradient; 0 where it does not count.
        vocabulary: which rows of the output matrix are here; None: all.
    """
    # Asked here, since inside the function autograd is off in training and evaluation alike.
    needs_grad = torch.is_grad_enabled() and (hidden_ND.requires_grad or weight_VD.requires_grad)
    rows = vocabulary or WholeVocabulary()
    itemsize = hidden_ND.dtype.itemsize if _is_fused(hidden_ND, rows) else 4
    chunk = chunk or tokens_at_once(hidden_ND.device, len(weight_VD), itemsize)
    return _ChunkedCrossEntropy.apply(hidden_ND, weight_VD, targets_N, rows, chunk, needs_grad, z_loss, out_N)  # pyright: ignore[reportReturnType]


def by_chunks(function: Callable[..., Tensor], hidden_ND: Tensor, weight_VD: Tensor, *rest: Tensor, chunk: int | None = None) -> Tensor:
    """`function(logits_nV, *rest_n)` of every chunk of tokens, side by side; logits are float32 and computed again for the gradient.

    Args:
        function: gives one value, or one row, a token.
        hidden_ND: final hidden states, in the compute dtype.
        weight_VD: output matrix.
        *rest: what else the function needs, with a row for each token.
        chunk: tokens whose logits exist at once; None: 512, on a GPU as many as have 1 GiB of float32 logits.
    """
    chunk = chunk or tokens_at_once(hidden_ND.device, len(weight_VD), 4)

    def one(hidden: Tensor, weight: Tensor, *parts: Tensor) -> Tensor:
        return function((hidden @ weight.to(hidden.dtype).t()).float(), *parts)

    starts = range(0, len(hidden_ND), chunk) or (0,)
    cut = ([part[start : start + chunk] for part in (hidden_ND, *rest)] for start in starts)
    # No random numbers are drawn inside, so none have to be kept.
    pieces = [checkpoint(one, hidden, weight_VD, *parts, use_reentrant=False, preserve_rng_state=False) for hidden, *parts in cut]
    return torch.cat(pieces)  # pyright: ignore[reportArgumentType, reportCallIssue]


def token_logprobs(
    hidden_ND: Float[Tensor, "N D"], weight_VD: Float[Tensor, "V D"], targets_N: Int[Tensor, "N"], *, chunk: int | None = None
) -> Float[Tensor, "N"]:
    """The log-probability of every target, in nats, float32 and differentiable."""

    def pick(logits: Tensor, targets: Tensor) -> Tensor:
        return logits.gather(1, targets[:, None])[:, 0] - logits.logsumexp(-1)

    return by_chunks(pick, hidden_ND, weight_VD, targets_N, chunk=chunk)
