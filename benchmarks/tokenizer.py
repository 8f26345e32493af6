"""Tokenizer speed: herd, tiktoken and Hugging Face tokenizers on one vocabulary and one text, in one run.

    python -m benchmarks.tokenizer [--tokenizer PATH] [--data FOLDER] [--json FILE]
    python -m benchmarks.tokenizer --train 500 [--data FOLDER]      train a 32k vocabulary, minutes and peak memory

Every peer has to give the same ids before anything is timed. Speeds are MB of UTF-8 a second; single is one thread, batch is every core.
`--data` is a folder of .jsonl(.zst) files; without it the text is herd's own, and little. Code is Python's standard library.
"""

from __future__ import annotations

import json
import os
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

from benchmarks import harness

PACKAGES = ("llama-herd", "tiktoken", "tokenizers", "regex")
MB = 1_000_000
_LEAST_S = 0.25
_CORPUS = {"en": "openstax_en", "de": "wikipedia_de_klexikon", "hi": "ms_courses", "th": "thaigov_th"}
_Encode = Callable[[list[str]], list[list[int]]]


def texts_by_language(data: Path | None, size_bytes: int) -> dict[str, list[str]]:
    """Documents of English, German, Hindi, Thai and code: up to `size_bytes` of each."""
    texts: dict[str, list[str]] = {}
    for language, name in _CORPUS.items():
        file = data / "corpus" / f"{name}.jsonl.zst" if data else None
        source = _corpus_texts(file, language) if file and file.is_file() else _own_texts(language)
        texts[language] = list(_up_to(source, size_bytes))
    texts["code"] = list(_up_to(_code(), size_bytes))
    return texts


def _corpus_texts(file: Path, language: str | None) -> Iterator[str]:
    """The texts of a JSON-lines file: its documents, or the turns of its dialogues."""
    from herd.data.records import read_records

    for record in read_records(file):
        if language is None or record.get("lang") == language:
            text = record.get("text")
            yield text if isinstance(text, str) else "\n".join(_strings(record))


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _strings(item)


def _own_texts(language: str) -> Iterator[str]:
    """What ships with herd in a language."""
    folder = Path(str(files("herd.recipes"))) / "data"
    if language == "en":
        yield from (folder / "tiny.txt").read_text(encoding="utf-8").split("\n---\n")
    yield from _corpus_texts(folder / f"cria_chat_{language}.jsonl", None)


def _code() -> Iterator[str]:
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        yield path.read_text(encoding="utf-8", errors="replace")


def _up_to(texts: Iterator[str], size_bytes: int) -> Iterator[str]:
    total = 0
    for text in texts:
        if total >= size_bytes:
            return
        total += len(text.encode("utf-8", "replace"))
        yield text


def _tokenizer_file(path: Path | None, folder: Path) -> Path:
    """The vocabulary to compare on: the given one, cria's, or one trained here on herd's own text. Returns a tokenizer.model."""
    from herd.base.paths import bundled_model
    from herd.text.bpe_train import train_bpe
    from herd.text.tokenizer import load_tokenizer

    bundled = bundled_model() / "tokenizer.model"
    chosen = path or (bundled if bundled.is_file() else None)
    tokenizer = (
        load_tokenizer(chosen) if chosen else train_bpe((text for name in _CORPUS for text in _own_texts(name)), 8192, min_frequency=1)
    )
    tokenizer.save(folder)
    print(f"vocabulary: {chosen or 'trained here on the text that ships with herd'}, {tokenizer.num_base:,} base tokens", file=sys.stderr)
    return folder / "tokenizer.model"


def _loaders(model: Path) -> dict[str, Callable[[], Any]]:
    import tiktoken
    import tokenizers
    from tiktoken.load import load_tiktoken_bpe

    from herd.text.tokenizer import SPLIT_REGEX, load_tokenizer

    os.environ["TIKTOKEN_CACHE_DIR"] = ""  # a cached copy of a local file would be stale
    return {
        "herd": lambda: load_tokenizer(model),
        "tiktoken": lambda: tiktoken.Encoding(
            "plain", pat_str=SPLIT_REGEX, mergeable_ranks=load_tiktoken_bpe(str(model)), special_tokens={}
        ),
        "tokenizers": lambda: tokenizers.Tokenizer.from_file(str(model.with_suffix(".json"))),
    }


def _encoders(peers: dict[str, Any], *, threads: int) -> dict[str, _Encode]:
    """How each peer encodes a list of texts, by its fastest way; one thread takes them one by one."""
    herd, plain, hub = peers["herd"], peers["tiktoken"], peers["tokenizers"]

    def hub_batch(texts: list[str]) -> list[list[int]]:
        os.environ["TOKENIZERS_PARALLELISM"] = "true" if threads > 1 else "false"
        return [encoding.ids for encoding in hub.encode_batch_fast(texts, add_special_tokens=False)]

    if threads == 1:
        return {
            "herd": lambda texts: [herd.encode(text) for text in texts],
            "tiktoken": lambda texts: [plain.encode_ordinary(text) for text in texts],
            "tokenizers": hub_batch,
        }
    return {
        "herd": lambda texts: herd.encode_batch(texts, num_threads=threads),
        "tiktoken": lambda texts: plain.encode_ordinary_batch(texts, num_threads=threads),
        "tokenizers": hub_batch,
    }


def _check_same(encoders: dict[str, _Encode], texts: list[str], language: str) -> int:
    """Stop unless every peer gives the same ids; returns how many there are."""
    results = {name: encode(texts) for name, encode in encoders.items()}
    for name, ids in results.items():
        if ids != results["herd"]:
            number = next(index for index, (one, other) in enumerate(zip(ids, results["herd"], strict=True)) if one != other)
            raise SystemExit(f"error: {name} and herd give different ids for {language} text {number}: {texts[number][:60]!r}...")
    return sum(map(len, results["herd"]))


def _speed(encode: _Encode, texts: list[str], num_bytes: int) -> Callable[[], float]:
    """MB a second, over as many passes as take a quarter of a second."""

    def measure() -> float:
        passes, started = 0, time.perf_counter()
        while (taken := time.perf_counter() - started) < _LEAST_S:
            encode(texts)
            passes += 1
        return passes * num_bytes / MB / taken

    return measure


def encoding(texts: dict[str, list[str]], model: Path, repeats: int) -> dict[str, Any]:
    """Loading and encoding, printed and returned."""
    loaders = _loaders(model)
    peers = {name: load() for name, load in loaders.items()}
    loading = harness.interleave({name: lambda load=load: harness.seconds(load) for name, load in loaders.items()}, repeats)
    results: dict[str, Any] = {"load_s": {name: harness.summary(figures) for name, figures in loading.items()}, "single": {}, "batch": {}}
    for kind, threads in (("single", 1), ("batch", max(2, harness.cores()))):
        encoders, rows = _encoders(peers, threads=threads), []
        for language, documents in texts.items():
            num_bytes = sum(len(text.encode("utf-8", "replace")) for text in documents)
            num_tokens = _check_same(encoders, documents, language)
            figures = harness.interleave({name: _speed(encode, documents, num_bytes) for name, encode in encoders.items()}, repeats)
            entry: dict[str, Any] = {name: harness.summary(values) for name, values in figures.items()}
            shares = harness.ratios({name: value["median"] for name, value in entry.items()}, of="herd")
            results[kind][language] = {"num_bytes": num_bytes, "num_tokens": num_tokens, "mb_per_s": entry, "herd_over": shares}
            rows.append(_row(f"{language}, {num_bytes / MB:.2f} MB", entry, shares))
        print(f"encoding, MB/s, {kind} ({threads} thread{'s' if threads > 1 else ''}), medians of {repeats}")
        harness.table(("text", *encoders, "herd/tiktoken", "herd/tokenizers"), rows)
    medians = {name: value["median"] for name, value in results["load_s"].items()}
    print(f"loading the vocabulary, ms, medians of {repeats}")
    harness.table(("", *medians), [("load", *(f"{1000 * value:.0f}" for value in medians.values()))])
    return results


def _row(name: str, entry: dict[str, Any], shares: dict[str, float]) -> tuple[str, ...]:
    return (name, *(f"{value['median']:.2f}" for value in entry.values()), *(f"{share:.2f}" for share in shares.values()))


class Stream:
    """`size_bytes` of text for training: the data folder's, then the code installed here, then the same again. Counts as it goes."""

    def __init__(self, data: Path | None, size_bytes: int) -> None:
        self.data, self.size_bytes = data, size_bytes
        self.num_bytes = self.distinct_bytes = 0
        self.reading_s = 0.0

    def _once(self) -> Iterator[str]:
        for file in sorted(self.data.rglob("*.jsonl*")) if self.data else ():
            yield from _corpus_texts(file, None)
        for language in _CORPUS:
            yield from _own_texts(language)
        for folder in (sysconfig.get_path("stdlib"), sysconfig.get_path("purelib")):
            for path in sorted(Path(folder).rglob("*.py")):
                yield path.read_text(encoding="utf-8", errors="replace")

    def __iter__(self) -> Iterator[str]:
        while self.num_bytes < self.size_bytes:
            source = self._once()
            started = time.perf_counter()
            for text in source:
                self.num_bytes += len(text.encode("utf-8", "replace"))
                self.reading_s += time.perf_counter() - started
                yield text
                if self.num_bytes >= self.size_bytes:
                    break
                started = time.perf_counter()
            self.distinct_bytes = self.distinct_bytes or self.num_bytes


def _train_herd(stream: Stream, vocab_size: int) -> int:
    from herd.text.bpe_train import train_bpe

    return train_bpe(stream, vocab_size, progress=True).num_base


def _train_peer(stream: Stream, vocab_size: int) -> int:
    """Hugging Face tokenizers used as its documentation shows, with Llama 3's split."""
    import tokenizers
    from tokenizers import models, pre_tokenizers, trainers

    from herd.text.tokenizer import SPLIT_REGEX

    hub = tokenizers.Tokenizer(models.BPE())
    split = pre_tokenizers.Split(tokenizers.Regex(SPLIT_REGEX), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    hub.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])  # pyright: ignore[reportAttributeAccessIssue]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    hub.train_from_iterator(
        iter(stream), trainer=trainers.BpeTrainer(vocab_size=vocab_size, min_frequency=2, initial_alphabet=alphabet, show_progress=False)
    )
    return hub.get_vocab_size()


def _train_child(peer: str, data: Path | None, size_bytes: int, vocab_size: int) -> dict[str, Any]:
    stream = Stream(data, size_bytes)
    started = time.perf_counter()
    size = (_train_herd if peer == "herd" else _train_peer)(stream, vocab_size)
    return {
        "seconds": time.perf_counter() - started,
        "reading_s": stream.reading_s,
        "num_bytes": stream.num_bytes,
        "distinct_bytes": stream.distinct_bytes,
        "vocab_size": size,
        "peak_rss_bytes": harness.peak_rss_bytes(),
    }


def training(data: Path | None, size_mb: int, vocab_size: int, peers: list[str], repeats: int) -> dict[str, Any]:
    """Train in a fresh process each time; printed and returned."""
    common = ["--train", str(size_mb), "--vocab-size", str(vocab_size), *(["--data", str(data.resolve())] if data else [])]
    runs: dict[str, list[dict[str, Any]]] = {peer: [] for peer in peers}
    for turn in range(repeats):
        for peer in peers[:: -1 if turn % 2 else 1]:
            runs[peer].append(harness.child("benchmarks.tokenizer", *common, "--child", peer))
    results: dict[str, Any] = {}
    rows = []
    for peer, records in runs.items():
        minutes = harness.summary([record["seconds"] / 60 for record in records])
        rss = harness.summary([record["peak_rss_bytes"] for record in records])
        results[peer] = {"minutes": minutes, "peak_rss_bytes": rss, "runs": records}
        rows.append((peer, f"{minutes['median']:.2f}", f"{rss['median'] / 2**20:,.0f}", f"{size_mb / 60 / minutes['median']:.2f}"))
    distinct = runs[peers[0]][0]["distinct_bytes"] / MB
    print(
        f"training {vocab_size:,} tokens on {size_mb} MB ({distinct:.0f} MB of it distinct), {harness.cores()} cores, medians of {repeats}"
    )
    harness.table(("", "minutes", "peak MiB", "MB/s"), rows)
    return results


def main() -> None:
    """Run what the command line asks for."""
    options = harness.parser(__doc__, repeats=0)
    options.add_argument(
        "--tokenizer", type=Path, metavar="PATH", help="a tokenizer.model or tokenizer.json with Llama 3's split (default: cria's)"
    )
    options.add_argument("--data", type=Path, metavar="FOLDER", help="a data folder with corpus/*.jsonl.zst")
    options.add_argument("--mb", type=float, default=2.0, help="MB of text for each language at most (default 2)")
    options.add_argument("--train", type=int, metavar="MB", help="train a vocabulary on that much text instead")
    options.add_argument("--vocab-size", type=int, default=32768, help="base tokens to train (default 32768)")
    options.add_argument("--peers", nargs="+", default=["herd", "tokenizers"], choices=("herd", "tokenizers"), help="who trains")
    options.add_argument("--child", help="internal: one measurement in this process")
    chosen = options.parse_args()
    if chosen.child:
        print(json.dumps(_train_child(chosen.child, chosen.data, chosen.train * MB, chosen.vocab_size)))
        return
    if chosen.train:
        results = {"training": training(chosen.data, chosen.train, chosen.vocab_size, chosen.peers, chosen.repeats or 1)}
    else:
        with tempfile.TemporaryDirectory() as folder:
            model = _tokenizer_file(chosen.tokenizer, Path(folder))
            results = {"encoding": encoding(texts_by_language(chosen.data, int(chosen.mb * MB)), model, chosen.repeats or 7)}
    harness.report(chosen.json, "tokenizer", PACKAGES, results)


if __name__ == "__main__":
    main()
