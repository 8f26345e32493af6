"""Prompt Guard 1 and 2: an encoder that tells jailbreaks and injections, over windows of a text of any length.

Version 1 has three labels (BENIGN, INJECTION, JAILBREAK), version 2 two (benign, malicious). A user's words are judged for a jailbreak
alone: version 1's injection label fires on ordinary requests. A third party's text is judged for both. Softmax has a temperature; the
score of a text is the highest of its windows, which overlap so that no attack is cut in two.

Letters spread out by spaces blind the tokenizer, a known attack. The defence puts the text together without white space, lets the tokenizer
find its tokens, and sets a space before a token only where the text had one. Torch is imported with the checkpoint, not with this module.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from herd.base.errors import CheckpointError, ConfigError, NotFoundError
from herd.safety.llama_guard import check_threshold
from herd.safety.verdict import THIRD_PARTY, Content, TouchPoint, Verdict

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Classify = Callable[[Sequence[Sequence[int]]], NDArray[np.float32]]
"""Token ids of some windows in, logits of every label out."""
Version = Literal[1, 2]
BENIGN, INJECTION, JAILBREAK = "benign", "injection", "jailbreak"
_LABELS: dict[Version, tuple[str, ...]] = {1: (BENIGN, INJECTION, JAILBREAK), 2: (BENIGN, JAILBREAK)}
_THRESHOLDS: dict[Version, float] = {1: 0.9, 2: 0.5}
_NAMES_OF_2 = {"label_0": BENIGN, "benign": BENIGN, "label_1": JAILBREAK, "malicious": JAILBREAK, "jailbreak": JAILBREAK}
REFUSAL = "Sorry, I cannot do this."
_SPECIAL = 2  # the first and the last token of a window


@dataclass(frozen=True, kw_only=True, slots=True)
class WindowConfig:
    """How a text is cut: tokens of a window with its two special ones, tokens that windows share, windows classified at once."""

    size: int = 512
    overlap: int = 64
    batch: int = 16

    def __post_init__(self) -> None:
        if self.size <= _SPECIAL or not 0 <= self.overlap < self.size - _SPECIAL or self.batch < 1:
            raise ConfigError(
                f"windows of {self.size} tokens with an overlap of {self.overlap}, {self.batch} at once, cannot be",
                hint="the overlap is smaller than what a window holds besides two special tokens, and a batch is at least 1",
            )


def read_labels(id2label: Sequence[str]) -> tuple[Version, tuple[str, ...]]:
    """The version that a checkpoint's labels are of, and what each label is called here. Raises CheckpointError for others."""
    lowered = [label.lower() for label in id2label]
    if sorted(lowered) == sorted(_LABELS[1]):
        return 1, tuple(lowered)
    named = tuple(_NAMES_OF_2.get(label, "") for label in lowered)
    if sorted(named) == sorted(_LABELS[2]):
        return 2, named
    if lowered == ["label_0", "label_1", "label_2"]:
        return 1, _LABELS[1]
    raise CheckpointError(
        f"a checkpoint with the labels {', '.join(id2label)} is no Prompt Guard",
        hint="version 1 has BENIGN, INJECTION, JAILBREAK; version 2 has two labels",
    )


def windows_of(ids: Sequence[int], config: WindowConfig) -> list[list[int]]:
    """Cut token ids into windows that overlap; at least one, so that an empty text is judged too."""
    room = config.size - _SPECIAL
    step = room - config.overlap
    starts = range(0, max(len(ids) - config.overlap, 1), step)
    return [list(ids[start : start + room]) for start in starts]


def close_up(text: str, offsets: Callable[[str], Sequence[tuple[int, int]]]) -> str:
    """The white space defence: only the spaces that stand before a token of the text without any are kept.

    Args:
        text: what may be spread out.
        offsets: where the tokens of a text begin and end.
    """
    places = [index for index, character in enumerate(text) if not character.isspace()]
    joined = "".join(text[index] for index in places)
    parts: list[str] = []
    done = 0
    for start, end in offsets(joined):
        start = max(start, done)
        if end <= start:
            continue
        parts.append(joined[done:start])
        if parts and start and text[places[start] - 1].isspace():
            parts.append(" ")
        parts.append(joined[start:end])
        done = end
    return "".join([*parts, joined[done:]]).strip()


def softmax(logits: NDArray[np.float32], temperature: float) -> NDArray[np.float64]:
    """Rows of probabilities."""
    scaled = logits.astype(np.float64) / temperature
    powers = np.exp(scaled - scaled.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


class PromptGuard:
    """Prompt Guard as a shield. `load_prompt_guard` makes one of a checkpoint.

    Args:
        classify: the encoder.
        tokenizer: its tokenizer; what padding and truncation it has is switched off.
        labels: what each class is called in the checkpoint.
        threshold: a text is unsafe from this score on; None takes the version's own (0.9, 0.5).
        temperature: of the softmax.
        windows: how texts are cut.
        closes_up: whether spread-out letters are put together first.
        name: of the shield.
        points: where it stands: at what comes in.

    Raises:
        CheckpointError: labels of neither version, a tokenizer without [CLS] and [SEP].
        ConfigError: a threshold outside 0 to 1, a temperature that is not above 0.
    """

    def __init__(
        self,
        classify: Classify,
        tokenizer: Tokenizer,
        labels: Sequence[str],
        *,
        threshold: float | None = None,
        temperature: float = 1.0,
        windows: WindowConfig | None = None,
        closes_up: bool = True,
        name: str = "prompt-guard",
        points: frozenset[TouchPoint] = frozenset({TouchPoint.INPUT, TouchPoint.TOOL_OUTPUT}),
    ) -> None:
        self.version, self.labels = read_labels(labels)
        self.threshold = _THRESHOLDS[self.version] if threshold is None else threshold
        check_threshold(self.threshold)
        if not temperature > 0.0:
            raise ConfigError(f"the temperature is {temperature!r}, it must be above 0", hint="1 is the checkpoint's own")
        self.name, self.points = name, points
        self._classify, self._tokenizer, self._temperature = classify, tokenizer, temperature
        self._windows, self._closes_up = windows or WindowConfig(), closes_up
        tokenizer.no_truncation()
        tokenizer.no_padding()
        first, last = (tokenizer.token_to_id(mark) for mark in ("[CLS]", "[SEP]"))
        if first is None or last is None:
            raise CheckpointError("the tokenizer has no [CLS] and [SEP]", hint="take tokenizer.json from the checkpoint's own folder")
        self._first, self._last = first, last

    async def check(self, content: Content) -> Verdict:
        """Judge a text, on a thread."""
        return await asyncio.to_thread(self.judge, content.text, third_party=content.point in THIRD_PARTY)

    def judge(self, text: str, *, third_party: bool = False) -> Verdict:
        """Judge a text: a user's, or one that a third party wrote."""
        probabilities = self.probabilities(text)
        scores = {label: float(probabilities[:, index].max()) for index, label in enumerate(self.labels) if label != BENIGN}
        counted = probabilities[
            :, [index for index, label in enumerate(self.labels) if label == JAILBREAK or (third_party and label != BENIGN)]
        ]
        score = float(counted.sum(axis=1).max())
        unsafe = score >= self.threshold
        worst = max((label for label in scores if third_party or label == JAILBREAK), key=lambda label: scores[label])
        if self.version == 2 and third_party:
            worst = INJECTION
        return Verdict(
            shield=self.name,
            unsafe=unsafe,
            score=score,
            categories=(worst,) if unsafe else (),
            reason=", ".join(f"{label} {value:.3f}" for label, value in scores.items()) if unsafe else "",
            user_message=REFUSAL if unsafe else "",
        )

    def probabilities(self, text: str) -> NDArray[np.float64]:
        """A row of label probabilities for every window of a text."""
        if self._closes_up:
            text = close_up(text, lambda joined: self._tokenizer.encode(joined, add_special_tokens=False).offsets)
        ids = self._tokenizer.encode(text, add_special_tokens=False).ids
        windows = [[self._first, *window, self._last] for window in windows_of(ids, self._windows)]
        batches = range(0, len(windows), self._windows.batch)
        logits = np.concatenate([self._classify(windows[start : start + self._windows.batch]) for start in batches])
        return softmax(logits, self._temperature)


def load_prompt_guard(path: Path | str, *, device: str = "cpu", windows: WindowConfig | None = None, **options: Any) -> PromptGuard:
    """A published checkpoint as it is: a folder with config.json, model.safetensors and tokenizer.json.

    Args:
        path: the folder.
        device: where the encoder runs.
        windows: how texts are cut; None takes the encoder's own length.
        options: of `PromptGuard`.

    Raises:
        NotFoundError: the folder or one of its files is absent.
        CheckpointError: it is no Prompt Guard, or damaged.
    """
    from tokenizers import Tokenizer

    from herd.safety.prompt_guard_encoder import Encoder

    file = Path(path) / "tokenizer.json"
    if not file.is_file():
        raise NotFoundError(f"{file} does not exist", hint="Prompt Guard's folder has config.json, model.safetensors and tokenizer.json")
    encoder = Encoder(path, device=device)
    try:
        tokenizer = Tokenizer.from_str(_plain(file))
    except Exception as error:  # the library raises Exception itself
        raise CheckpointError(f"{file} is no tokenizer: {error}", hint="fetch it again") from error
    if tokenizer.get_vocab_size() > encoder.config.vocab_size:
        raise CheckpointError(
            f"{file} has {tokenizer.get_vocab_size():,} tokens, the encoder {encoder.config.vocab_size:,}",
            hint="the two files belong to different models",
        )
    chosen = windows or WindowConfig(
        size=encoder.config.max_position_embeddings, overlap=min(64, encoder.config.max_position_embeddings // 8)
    )
    return PromptGuard(encoder, tokenizer, encoder.config.id2label, windows=chosen, **options)


def _plain(file: Path) -> str:
    """A tokenizer's JSON without the truncation and padding that it may have been saved with: nothing is cut here."""
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} is not JSON: {error}", hint="fetch it again") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{file} holds {type(data).__name__}, not an object", hint="fetch it again")
    return json.dumps({**data, "truncation": None, "padding": None})
