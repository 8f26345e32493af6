"""A linear detector over hashed n-grams: logistic regression fitted in numpy, weights kept in a byte each, probabilities out.

Training minimises the weighted log loss with an L2 penalty by full gradients with Adagrad's step sizes; it is the same on every run.
p(x) = sigmoid(scale * w . x + bias), w in int8. Knows no texts' meaning and no files' origin.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from herd.safety.features import Rows


def sigmoid(values: NDArray[np.floating]) -> NDArray[np.float64]:
    """1 / (1 + exp(-x)), without overflow."""
    return 0.5 * (1.0 + np.tanh(0.5 * np.asarray(values, dtype=np.float64)))


@dataclass(frozen=True, kw_only=True, slots=True)
class Linear:
    """Weights of one label: int8 with one scale, and a bias."""

    weights: NDArray[np.int8]
    scale: float
    bias: float

    def probabilities(self, rows: Rows) -> NDArray[np.float64]:
        """The probability of the label for each row."""
        return sigmoid(self.scale * rows.dot(self.weights.astype(np.float32)) + self.bias)


@dataclass(frozen=True, kw_only=True, slots=True)
class FitConfig:
    """How weights are fitted: steps, the first step's size, the penalty on squares of weights (over the mean loss)."""

    num_steps: int = 120
    lr: float = 1.0
    l2: float = 3e-7


def fit(rows: Rows, labels: NDArray[np.floating], importance: NDArray[np.floating], size: int, config: FitConfig | None = None) -> Linear:
    """Fit labels between 0 and 1; rows count by their importance."""
    config = config or FitConfig()
    share = importance / importance.sum()
    weights, bias = np.zeros(size), 0.0
    squares, bias_square = np.full(size, 1e-10), 1e-10
    for _ in range(config.num_steps):
        error = (sigmoid(rows.dot(weights) + bias) - labels) * share
        gradient = rows.spread(error, size) + config.l2 * weights
        squares += gradient**2
        bias_gradient = float(error.sum())
        bias_square += bias_gradient**2
        weights -= config.lr * gradient / np.sqrt(squares)
        bias -= config.lr * bias_gradient / np.sqrt(bias_square)
    return quantise(weights, bias)


def quantise(weights: NDArray[np.floating], bias: float) -> Linear:
    """Weights in a byte each: the largest becomes 127; a few that stand far out are cut so that the others keep their digits."""
    limit = max(float(np.quantile(np.abs(weights[weights != 0.0]), 0.9999)) if (weights != 0.0).any() else 0.0, 1e-12)
    scale = limit / 127.0
    return Linear(weights=np.clip(np.rint(weights / scale), -127, 127).astype(np.int8), scale=scale, bias=float(bias))
