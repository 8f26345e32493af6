"""Grammars: herd (over llguidance) and xgrammar, where that is installed, on one vocabulary, the same schemas and the same answers.

    python -m benchmarks.grammar [--tokenizer PATH] [--schemas 200] [--json FILE]

Processor times: building the vocabulary, compiling a schema to its first mask, the masks along a real answer (mean, median, 99th
percentile; the very first answer of a schema apart); and memory of many distinct schemas. Both peers have to take every token of every
answer before a figure counts.
"""

from __future__ import annotations

import gc
import importlib.util
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from benchmarks import harness

PACKAGES = ("llama-herd", "llguidance", "xgrammar")
_ANSWERS = 20


def person(number: int) -> dict[str, Any]:
    """A schema like many, and distinct by its number."""
    address = {"type": "object", "properties": {"street": {"type": "string"}, "zip": {"type": "string", "maxLength": 9}}}
    return {
        "type": "object",
        "properties": {
            "name": {"type": "string"},
            "age": {"type": "integer", "minimum": 0, "maximum": 150},
            f"kind{number}": {"enum": ["alpha", "beta", f"gamma{number}"]},
            "tags": {"type": "array", "items": {"type": "string"}, "maxItems": 5},
            "address": {**address, "required": ["street", "zip"], "additionalProperties": False},
            "score": {"type": "number"},
        },
        "required": ["name", "age", f"kind{number}", "address"],
        "additionalProperties": False,
    }


def cases() -> dict[str, tuple[dict[str, Any], Any]]:
    """Schemas, each with an answer to it."""
    node = {"type": "object", "properties": {"v": {"type": "string"}, "children": {"type": "array", "items": {"$ref": "#/$defs/n"}}}}
    wide = {f"property_{index}": {"type": ["string", "number", "null"]} for index in range(100)}
    kinds = [
        {
            "type": "object",
            "properties": {"kind": {"const": f"k{index}"}, "val": {"type": "string"}},
            "required": ["kind", "val"],
            "additionalProperties": False,
        }
        for index in range(20)
    ]
    return {
        "person": (
            person(0),
            {
                "name": "Ada Lovelace of London, first programmer",
                "age": 36,
                "kind0": "gamma0",
                "tags": ["mathématiques", "poète", "数学"],
                "address": {"street": '12 St James\'s Square, "upper" floor\n2nd', "zip": "12345"},
                "score": 99.125,
            },
        ),
        "enum of 1000": (
            {"type": "object", "properties": {"c": {"enum": [f"value number {index}" for index in range(1000)]}}, "required": ["c"]},
            {"c": "value number 777"},
        ),
        "100 properties": (
            {"type": "object", "properties": wide, "required": list(wide)[::3], "additionalProperties": False},
            {name: "some text here" if index % 2 else 3.25 for index, name in enumerate(list(wide)[::3])},
        ),
        "tree": (
            {"$defs": {"n": {**node, "required": ["v"], "additionalProperties": False}}, "$ref": "#/$defs/n"},
            {"v": "root", "children": [{"v": "leaf one", "children": []}, {"v": "leaf two", "children": [{"v": "deep"}]}]},
        ),
        "20 kinds": (
            {"type": "array", "items": {"anyOf": kinds}, "minItems": 1, "maxItems": 5},
            [{"kind": "k3", "val": "three"}, {"kind": "k19", "val": "a longer text with words in it"}],
        ),
    }


class Peer(Protocol):
    """A library: its vocabulary is built by making one."""

    def compile(self, schema: dict[str, Any]) -> Any:
        """A compiled schema whose first mask is known."""
        ...

    def begin(self, compiled: Any) -> tuple[Callable[[], object], Callable[[int], bool]]:
        """One answer: a function that computes the mask, one that takes a token."""
        ...


class Herd:
    """herd, nothing kept."""

    def __init__(self, tokenizer: Any) -> None:
        from herd.engine.grammar.compiler import GrammarCompiler

        self._compiler = GrammarCompiler(
            [tokenizer.token_bytes(token_id) for token_id in range(tokenizer.vocab_size)],
            special_ids=tokenizer.special_tokens.values(),
            stop_ids=tokenizer.stop_ids,
            split_regex=tokenizer.split_regex,
        )

    def compile(self, schema: dict[str, Any]) -> Any:
        """Past the cache."""
        from herd.engine.grammar.spec import Grammar

        return self._compiler._build(Grammar.json_schema(schema))

    def begin(self, compiled: Any) -> tuple[Callable[[], object], Callable[[int], bool]]:
        """A state's own methods."""
        state = compiled.state()
        return state.mask, state.accept


class XGrammar:
    """xgrammar with its cache off, one thread, compact JSON."""

    def __init__(self, tokenizer: Any) -> None:
        import xgrammar

        tokens = [b"" if tokenizer.special_name(token_id) else tokenizer.token_bytes(token_id) for token_id in range(tokenizer.vocab_size)]
        info = xgrammar.TokenizerInfo(tokens, xgrammar.VocabType.RAW, stop_token_ids=sorted(tokenizer.stop_ids))
        self._compiler = xgrammar.GrammarCompiler(info, max_threads=1, cache_enabled=False)
        self._mask = xgrammar.allocate_token_bitmask(1, info.vocab_size)

    def compile(self, schema: dict[str, Any]) -> Any:
        """Compact JSON."""
        return self._compiler.compile_json_schema(schema, any_whitespace=False, separators=(",", ":"))

    def begin(self, compiled: Any) -> tuple[Callable[[], object], Callable[[int], bool]]:
        """A matcher's own methods."""
        import xgrammar

        matcher = xgrammar.GrammarMatcher(compiled)
        return lambda: matcher.fill_next_token_bitmask(self._mask), matcher.accept_token


def rss_mib() -> float:
    """What this process has in memory now."""
    with open("/proc/self/status", encoding="utf-8") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmRSS:")) / 1024


def answer_times(peer: Peer, compiled: Any, ids: list[int], name: str) -> list[float]:
    """Microseconds of each mask of one answer."""
    mask, accept = peer.begin(compiled)
    times: list[float] = []
    for token_id in ids:
        started = time.thread_time()
        mask()
        times.append(1e6 * (time.thread_time() - started))
        if not accept(token_id):
            raise SystemExit(f"error: token {len(times)} of the answer to {name!r} is refused")
    return times


def _compiling(peer: Peer, schema: dict[str, Any]) -> Callable[[], float]:
    """Milliseconds of the processor for one compilation."""

    def measure() -> float:
        started = time.process_time()
        peer.compile(schema)
        return 1e3 * (time.process_time() - started)

    return measure


def masks(peers: dict[str, Peer], tokenizer: Any, repeats: int) -> dict[str, Any]:
    """Compiling and masks, printed and returned."""
    results: dict[str, Any] = {}
    rows: list[tuple[str, ...]] = []
    for name, (schema, answer) in cases().items():
        ids = tokenizer.encode(json.dumps(answer, ensure_ascii=False, separators=(",", ":")))
        compiling = harness.interleave({key: _compiling(peer, schema) for key, peer in peers.items()}, repeats)
        compiled = {key: peer.compile(schema) for key, peer in peers.items()}
        first = {key: answer_times(peer, compiled[key], ids, name) for key, peer in peers.items()}
        later: dict[str, list[float]] = {key: [] for key in peers}
        for _ in range(_ANSWERS):
            for key, peer in peers.items():
                later[key] += answer_times(peer, compiled[key], ids, name)
        results[name] = {"num_tokens": len(ids)}
        for key in peers:
            times = sorted(later[key])
            row = {
                "compile_ms": harness.summary(compiling[key]),
                "first_answer_ms": sum(first[key]) / 1e3,
                "mask_mean_us": statistics.fmean(times),
                "mask_median_us": statistics.median(times),
                "mask_p99_us": times[int(0.99 * len(times))],
            }
            results[name][key] = row
            figures = (row["compile_ms"]["median"], row["first_answer_ms"], row["mask_mean_us"], row["mask_median_us"], row["mask_p99_us"])
            rows.append((f"{name}, {key}", *(f"{figure:.1f}" for figure in figures)))
    harness.table(("schema, library", "compile ms", "first answer's masks ms", "mask mean us", "median us", "p99 us"), rows)
    return results


def memory(peers: dict[str, Peer], num_schemas: int) -> dict[str, Any]:
    """Memory and time of many distinct schemas held at once."""
    results: dict[str, Any] = {}
    for key, peer in peers.items():
        gc.collect()
        before, started = rss_mib(), time.process_time()
        held = [peer.compile(person(number)) for number in range(num_schemas)]
        results[key] = {
            "kib_each": 1024 * (rss_mib() - before) / num_schemas,
            "ms_each": 1e3 * (time.process_time() - started) / num_schemas,
        }
        del held
    rows = [(key, f"{value['kib_each']:.0f}", f"{value['ms_each']:.1f}") for key, value in results.items()]
    harness.table((f"{num_schemas:,} schemas", "KiB each", "ms each"), rows)
    return results


def main() -> None:
    """Run what the command line asks for."""
    options = harness.parser(__doc__, repeats=5)
    options.add_argument("--tokenizer", type=Path, metavar="PATH", help="a tokenizer.model or its folder (default: cria's)")
    options.add_argument("--schemas", type=int, default=200, help="distinct schemas to hold (default 200)")
    chosen = options.parse_args()
    from herd.base.paths import bundled_model
    from herd.text.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(chosen.tokenizer or bundled_model())
    kinds: dict[str, Callable[[Any], Peer]] = {"herd": Herd}
    if importlib.util.find_spec("xgrammar"):
        kinds["xgrammar"] = XGrammar
    else:
        print("xgrammar is not installed: herd alone", file=sys.stderr)
    peers: dict[str, Peer] = {}
    building: dict[str, float] = {}
    for name, kind in kinds.items():
        before, started = rss_mib(), time.process_time()
        peers[name] = kind(tokenizer)
        building[name] = time.process_time() - started
        print(f"{name}: vocabulary of {tokenizer.vocab_size:,} in {building[name]:.2f} s, {rss_mib() - before:.0f} MiB")
    results = {"vocab_size": tokenizer.vocab_size, "build_s": building, "memory": memory(peers, chosen.schemas)}
    results["masks"] = masks(peers, tokenizer, chosen.repeats)
    harness.report(chosen.json, "grammar", PACKAGES, results)


if __name__ == "__main__":
    main()
