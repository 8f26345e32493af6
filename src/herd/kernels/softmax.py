"""The softmax of causal scores and its gradient: what training on a CPU does between the products of attention.

    P = softmax(s X) over the keys that a row may look at, 0 for later ones;  dX = s P o (dP - delta)

Scores are float32; probabilities are rounded once to their dtype, and so is the gradient. Registered with torch, so that a step can be
traced with tensors that hold nothing (`train --simulate`). Shapes: R rows, S keys.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from herd.kernels import dispatch, library
from herd.kernels.checks import refuse


def causal_softmax(scores_RS: Float[Tensor, "*rows S"], *, first: int, scale: float, dtype: torch.dtype) -> Float[Tensor, "*rows S"]:
    """Probabilities of rows of scores, which are scratch afterwards.

    Args:
        scores_RS: float32, contiguous; rows are queries that follow each other, the second last dimension of them.
        first: keys that the first row may look at; each further one may look at one more.
        scale: what scores are multiplied by.
        dtype: the probabilities'.

    Raises ConfigError for scores of another kind, and where the first row could look at nothing.
    """
    keys = scores_RS.shape[-1]
    if scores_RS.dtype != torch.float32 or not scores_RS.is_contiguous():
        raise refuse(f"scores are {scores_RS.dtype}, strides {list(scores_RS.stride())}", "give contiguous float32")
    if not 1 <= first <= keys:
        raise refuse(f"the first row cannot look at {first} keys", f"give 1 to {keys}")
    return _softmax(scores_RS, first, scale, dtype)


@torch.library.custom_op(
    "herd::causal_softmax", mutates_args=("scores",), schema="(Tensor(a!) scores, int first, float scale, ScalarType dtype) -> Tensor"
)
def _softmax(scores: Tensor, first: int, scale: float, dtype: torch.dtype) -> Tensor:
    found = dispatch.native(scores.device, dtype)
    run, keys = scores.shape[-2:]
    if found is None:
        later = torch.ones(run, keys, dtype=torch.bool, device=scores.device).triu_(first)
        return torch.softmax(scores.mul_(scale).masked_fill_(later, -math.inf), -1).to(dtype)
    out = torch.empty(scores.shape, dtype=dtype)
    at = (scores.data_ptr(), scores.numel() // keys, keys, first, run, scale)
    library.raise_for(found.softmax(*at, out.data_ptr(), library.code(dtype)))
    return out


@_softmax.register_fake
def _(scores: Tensor, first: int, scale: float, dtype: torch.dtype) -> Tensor:
    return torch.empty(scores.shape, dtype=dtype, device=scores.device)


def softmax_gradient(
    grad_RS: Float[Tensor, "*rows S"], probabilities_RS: Float[Tensor, "*rows S"], delta_R: Float[Tensor, "*rows"], *, scale: float
) -> Float[Tensor, "*rows S"]:
    """The gradient of probabilities becomes that of the scores before `scale`, in place.

    Args:
        grad_RS: contiguous, in the dtype of the probabilities.
        probabilities_RS: as `causal_softmax` gave them.
        delta_R: float32, of each row the sum of gradients times probabilities.
        scale: what scores were multiplied by.

    Raises ConfigError where shapes and dtypes do not fit.
    """
    kind, shape = probabilities_RS.dtype, probabilities_RS.shape
    if grad_RS.dtype != kind or grad_RS.shape != shape or delta_R.shape != shape[:-1] or delta_R.dtype != torch.float32:
        told = f"gradients {grad_RS.dtype} {list(grad_RS.shape)} and deltas {delta_R.dtype} {list(delta_R.shape)}"
        raise refuse(f"{told} do not fit probabilities {kind} {list(shape)}", "give one gradient a probability, one float32 delta a row")
    if not (grad_RS.is_contiguous() and probabilities_RS.is_contiguous() and delta_R.is_contiguous()):
        raise refuse("gradients, probabilities and deltas have to be contiguous", "call contiguous() on them")
    _gradient(grad_RS, probabilities_RS, delta_R, scale)
    return grad_RS


@torch.library.custom_op(
    "herd::softmax_gradient", mutates_args=("grad",), schema="(Tensor(a!) grad, Tensor probabilities, Tensor delta, float scale) -> ()"
)
def _gradient(grad: Tensor, probabilities: Tensor, delta: Tensor, scale: float) -> None:
    found = dispatch.native(grad.device, grad.dtype)
    if found is None:
        grad.copy_((grad.float() - delta[..., None]).mul_(probabilities).mul_(scale))
        return
    keys = grad.shape[-1]
    at = (grad.data_ptr(), probabilities.data_ptr(), delta.data_ptr(), grad.numel() // max(1, keys), keys, scale)
    library.raise_for(found.softmax_gradient(*at, library.code(grad.dtype)))


@_gradient.register_fake
def _(grad: Tensor, probabilities: Tensor, delta: Tensor, scale: float) -> None:
    """Nothing is allocated."""
