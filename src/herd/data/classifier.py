"""A linear classifier of texts: hashed words and pairs of words, softmax, trained in one process in seconds to minutes.

What fastText's supervised mode does, in numpy: score = softmax(mean of the rows of W at the text's features + b). Trained by AdaGrad, one
text at a time in a seeded order, so that the same labels give the same file. The file holds arrays only, never code.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from herd.base.atomic import atomic_file
from herd.base.errors import ConfigError, FormatError, NotFoundError
from herd.data.units import mixed, ngrams, stable_hash, word_hashes

Matrix = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassifierConfig:
    """How a classifier is trained. `buckets` is a power of two; `max_words` are looked at; one in `heldout_one_in` texts only measures."""

    buckets: int = 2**18
    max_words: int = 2000
    epochs: int = 5
    lr: float = 0.5
    l2: float = 1e-6
    heldout_one_in: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        if self.buckets < 2 or self.buckets & (self.buckets - 1) or self.buckets > 2**26:
            raise ConfigError(f"buckets is {self.buckets}", hint="a power of two up to 67,108,864; 262,144 is usual")
        for name in ("max_words", "epochs", "lr"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name} is {getattr(self, name)}, it must be positive", hint=f"leave {name} at its default")
        if self.heldout_one_in < 2:
            raise ConfigError(f"heldout_one_in is {self.heldout_one_in}", hint="at least 2; 10 holds out a tenth")


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassifierReport:
    """What training came to, on texts that it did not see: accuracy, and for each label precision, recall and count."""

    num_train: int
    num_heldout: int
    accuracy: float
    majority: float
    labels: Mapping[str, Mapping[str, float]]


class TextClassifier:
    """Labels and weights. `scores` gives the probability of every label."""

    def __init__(self, labels: Sequence[str], weights: Matrix, bias: Matrix, config: ClassifierConfig) -> None:
        self.labels, self.weights, self.bias, self.config = tuple(labels), weights, bias, config

    def features(self, text: str) -> NDArray[np.int64]:
        """The buckets of a text's words and pairs, with repeats."""
        hashes = word_hashes(text)[: self.config.max_words]
        both = np.concatenate([hashes, ngrams(hashes, 2)])
        return (mixed(both) & np.uint64(self.config.buckets - 1)).astype(np.int64)

    def scores(self, text: str) -> dict[str, float]:
        """The probability of every label; the shares of the training set for a text without words."""
        return dict(zip(self.labels, map(float, self._probabilities(self.features(text))), strict=True))

    def _probabilities(self, features: NDArray[np.int64]) -> Matrix:
        logits = self.bias + (self.weights[features].mean(axis=0) if len(features) else 0.0)
        exponents = np.exp(logits - logits.max())
        return exponents / exponents.sum()

    def save(self, path: Path) -> None:
        """Write one .npz file, the same bytes for the same classifier."""
        about = json.dumps({"labels": self.labels, "config": asdict(self.config)}).encode()
        arrays = {"weights": self.weights, "bias": self.bias, "about": np.frombuffer(about, dtype=np.uint8)}
        with atomic_file(path) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, allow_pickle=False, **cast("dict[str, NDArray[np.float32]]", arrays))


@lru_cache(maxsize=4)
def load_classifier(path: str) -> TextClassifier:
    """Read a classifier. Raises NotFoundError, FormatError."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            about = json.loads(bytes(arrays["about"]))
            config = ClassifierConfig(**about["config"])
            classifier = TextClassifier(about["labels"], arrays["weights"], arrays["bias"], config)
    except OSError as error:
        raise NotFoundError(f"cannot read the classifier {path}: {error.strerror}", hint="train one: herd data classifier train") from error
    except (KeyError, ValueError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise FormatError(f"{path} is no classifier of herd's: {error}", hint="train one: herd data classifier train") from error
    shapes = (classifier.weights.shape, classifier.bias.shape)
    if shapes != ((config.buckets, len(classifier.labels)), (len(classifier.labels),)):
        raise FormatError(f"{path}: arrays of {shapes} for {len(classifier.labels)} labels", hint="the file is damaged; train it anew")
    return classifier


def train_classifier(
    examples: Sequence[tuple[str, str]], config: ClassifierConfig, *, on_step: Callable[[int], None] | None = None
) -> tuple[TextClassifier, ClassifierReport]:
    """Fit (text, label) pairs; texts are held out by a digest of their own.

    Raises ConfigError for fewer than two labels or too few texts.
    """
    labels = sorted({label for _, label in examples})
    if len(labels) < 2:
        raise ConfigError(
            f"all {len(examples)} texts have the label {labels[:1]}", hint="a classifier needs examples of two labels at least"
        )
    held = [stable_hash(text) % config.heldout_one_in == 0 for text, _ in examples]
    train = [example for example, out in zip(examples, held, strict=True) if not out]
    rest = [example for example, out in zip(examples, held, strict=True) if out]
    if not train or not rest:
        raise ConfigError(f"{len(examples)} texts are too few to train on and to measure by", hint="give a hundred or more")
    shares = np.array([sum(label == name for _, label in train) for name in labels], dtype=np.float32)
    weights = np.zeros((config.buckets, len(labels)), dtype=np.float32)
    bias = np.log((shares + 1) / (shares.sum() + len(labels))).astype(np.float32)
    classifier = TextClassifier(labels, weights, bias, config)
    _fit(classifier, [(classifier.features(text), labels.index(label)) for text, label in train], on_step)
    return classifier, _measure(classifier, rest, len(train))


def _fit(classifier: TextClassifier, examples: list[tuple[NDArray[np.int64], int]], on_step: Callable[[int], None] | None) -> None:
    """AdaGrad over the texts in a seeded order. Rows are averaged, so each counts by how often its feature is in the text."""
    config, weights, bias = classifier.config, classifier.weights, classifier.bias
    squares = np.full_like(weights, 1e-8)
    bias_squares = np.full_like(bias, 1e-8)
    packed = [(*np.unique(features, return_counts=True), label) for features, label in examples]
    done = 0
    for epoch in range(config.epochs):
        for number in np.random.default_rng([config.seed, epoch]).permutation(len(packed)):
            rows, counts, label = packed[number]
            share = (counts / max(1, counts.sum())).astype(np.float32)
            gradient = classifier._probabilities(np.empty(0, np.int64)) if len(rows) == 0 else _softmax(bias + share @ weights[rows])
            gradient[label] -= 1
            bias_squares += gradient**2
            bias -= 0.1 * config.lr * gradient / np.sqrt(bias_squares)
            step = share[:, None] * gradient + config.l2 * weights[rows]
            squares[rows] += step**2
            weights[rows] -= config.lr * step / np.sqrt(squares[rows])
            done += 1
            if on_step is not None:
                on_step(done)


def _softmax(logits: Matrix) -> Matrix:
    exponents = np.exp(logits - logits.max())
    return exponents / exponents.sum()


def _measure(classifier: TextClassifier, examples: Sequence[tuple[str, str]], num_train: int) -> ClassifierReport:
    pairs = [(label, max(scores, key=lambda name: scores[name])) for text, label in examples if (scores := classifier.scores(text))]
    labels: dict[str, dict[str, float]] = {}
    for name in classifier.labels:
        right = sum(said == label == name for label, said in pairs)
        told, real = sum(said == name for _, said in pairs), sum(label == name for label, _ in pairs)
        labels[name] = {"precision": right / told if told else 0.0, "recall": right / real if real else 0.0, "count": real}
    accuracy = sum(label == said for label, said in pairs) / len(pairs)
    majority = max(values["count"] for values in labels.values()) / len(pairs)
    return ClassifierReport(num_train=num_train, num_heldout=len(pairs), accuracy=accuracy, majority=majority, labels=labels)
