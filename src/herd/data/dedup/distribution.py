"""Documents whose tokens are distributed unlike the corpus: tables, listings, gibberish (section 3.1.1 of the Llama 3 paper).

D(p || q) = sum p log(p / q) over the tokens of a document's first `window` tokens, q the whole corpus of the same language, smoothed. Short
windows lie far from any corpus, so only documents of `window` tokens or more are judged, by their opening, middle and end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from herd.base.errors import ConfigError
from herd.base.paths import bundled_model
from herd.data.dedup.corpus_stage import Judge, Signatures, Signer
from herd.data.records import Record
from herd.data.stages.stage import Drop, Note
from herd.text.tokenizer import Tokenizer, load_tokenizer

_SMOOTHING = 0.5


@lru_cache(maxsize=2)
def _tokenizer(path: str | None) -> Tokenizer:
    return load_tokenizer(Path(path) if path else bundled_model())


def divergence(ids: Sequence[int], counts: NDArray[np.int64]) -> float:
    """D(p || q) in nats of some token ids against counts of a corpus."""
    tokens, own = np.unique(np.asarray(ids, dtype=np.int64), return_counts=True)
    share = own / own.sum()
    corpus = (counts[tokens] + _SMOOTHING) / (counts.sum() + _SMOOTHING * len(counts))
    return float((share * np.log(share / corpus)).sum())


class _CountSigner:
    """Token counts of a shard by language."""

    def __init__(self, stage: TokenDistribution) -> None:
        self._stage = stage
        self._counts: dict[str, NDArray[np.int64]] = {}

    def add(self, record: Record | None) -> None:
        """The next document."""
        if record is None:
            return
        tokenizer = _tokenizer(self._stage.tokenizer)
        language = str(record.get("lang") or "")
        if language not in self._counts:
            self._counts[language] = np.zeros(tokenizer.vocab_size, np.int64)
        for ids in self._stage.windows(record["text"]):
            self._counts[language] += np.bincount(ids, minlength=tokenizer.vocab_size)

    def save(self, folder: Path) -> None:
        """An array for every language."""
        for language, counts in self._counts.items():
            np.save(folder / f"counts-{language}.npy", counts)


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenDistribution:
    """Drops documents that lie more than `max_nats` from the corpus of their language; `tokenizer` is a folder, by default cria's."""

    kind: ClassVar[str] = "token_distribution"
    routes: tuple[str, ...] = ("prose",)
    tokenizer: str | None = None
    window: int = 512
    max_nats: float = 4.0
    min_tokens: int = 100_000

    def __post_init__(self) -> None:
        if self.window < 16 or self.max_nats <= 0:
            raise ConfigError(f"window {self.window}, max_nats {self.max_nats}", hint="a window of 512 and 4 nats are usual")

    @property
    def parts(self) -> int:
        """One."""
        return 1

    def files(self) -> tuple[str, ...]:
        """The tokenizer's, where one is named."""
        place = Path(self.tokenizer) if self.tokenizer else None
        names = ("tokenizer.model", "tokenizer.json")
        return () if place is None else tuple(str(path) for path in (place, *(place / name for name in names)) if path.is_file())

    def windows(self, text: str) -> list[list[int]]:
        """The token ids of a text's opening, middle and end, as far as they do not overlap; none for a short text."""
        near = self.window * 8
        if len(text) <= 3 * near:
            ids = _tokenizer(self.tokenizer).encode(text)
            return [ids[: self.window]] if len(ids) >= self.window else []
        middle = len(text) // 2
        pieces = (text[:near], text[middle : middle + near], text[-near:])
        return [ids[: self.window] for piece in pieces if len(ids := _tokenizer(self.tokenizer).encode(piece)) >= self.window]

    def signer(self) -> Signer:
        """Of token counts."""
        return _CountSigner(self)

    def find(self, signatures: Signatures, part: int, output: Path) -> Mapping[str, Any]:
        """The sum of all shards, by language."""
        totals: dict[str, NDArray[np.int64]] = {}
        for folder in signatures.folders:
            for path in sorted(folder.glob("counts-*.npy")):
                totals[path.name] = totals.get(path.name, 0) + np.load(path)
        for name, counts in totals.items():
            np.save(output / name, counts)
        return {name.removeprefix("counts-").removesuffix(".npy"): int(counts.sum()) for name, counts in totals.items()}

    def merge(self, signatures: Signatures, parts: Sequence[Path], output: Path) -> Mapping[str, Any]:
        """The one part as it is."""
        for path in sorted(parts[0].glob("counts-*.npy")):
            np.save(output / path.name, np.load(path))
        return {}

    def judge(self, result: Path, shard: int) -> Judge:
        """Documents too far from their language's corpus go; a language of fewer than `min_tokens` tokens judges nobody."""
        corpora = {path.name[len("counts-") : -len(".npy")]: np.load(path) for path in sorted(result.glob("counts-*.npy"))}

        def judge(place: int, record: Record, note: Note) -> Record | Drop:
            counts = corpora.get(str(record.get("lang") or ""))
            if counts is None or counts.sum() < self.min_tokens:
                return record
            distances = [divergence(ids, counts) for ids in self.windows(record["text"])]
            if not distances:
                return record
            note(f"{int(max(distances) * 2) / 2:.1f} nats", 1)
            return Drop("tokens unlike the corpus", f"{max(distances):.2f} nats") if max(distances) > self.max_nats else record

        return judge
