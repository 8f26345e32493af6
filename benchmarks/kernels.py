"""The C kernels beside torch: `python -m benchmarks.kernels [--only linear|decode|prefill] [--quick] [--json FILE]`.

Linear against F.linear, paged attention against scaled_dot_product_attention over contiguous keys and values, at the shapes of cria and of
Llama 3.2 1B. Weights of 1B take turns so that none stays in the cache, as in a model; those of cria stay there, as in a model. GB/s are
weights, or keys and values, by time; `read` is a plain read of the same memory by the same threads. Results have to agree before a figure
counts. Attention over int8 is set beside torch's over the dtype of the queries, which has no such
cache, and beside herd's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import harness
from herd.kernels import dispatch
from herd.kernels.attention import paged_attention
from herd.kernels.batch import plan_batch
from herd.kernels.int8_rows import dequantise, quantise
from herd.kernels.linear import linear, pack_linear
from herd.kernels.rope import make_cache

PACKAGES = ("llama-herd", "torch", "numpy")
GB = 1e9
_SHAPES = {
    "cria": [(384, 384), (384, 1024), (1024, 384), (384, 16384)],
    "1b": [(2048, 2048), (2048, 8192), (8192, 2048), (2048, 128256)],
}
_ROWS = (1, 8, 32, 512)
_TURNING_BYTES = {"cria": 1, "1b": 300_000_000}
_HEADS = {"cria": (6, 2, 64), "1b": (32, 8, 64), "8b": (32, 8, 128)}
_CONTEXTS = (1024, 8192, 32768)
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_CACHE_DTYPES = {**_DTYPES, "int8": torch.int8}
_SAMPLE_S = 0.05
_AGREE = {torch.float32: 1e-4, torch.bfloat16: 2e-2}


def timed(function: Callable[[], object]) -> Callable[[], float]:
    """A task for the harness: seconds a call, over enough calls to fill a sample."""
    function()
    calls = max(1, round(_SAMPLE_S / max(1e-7, harness.seconds(function))))

    def sample() -> float:
        started = time.perf_counter()
        for _ in range(calls):
            function()
        return (time.perf_counter() - started) / calls

    return sample


def agree(found: Tensor, expected: Tensor) -> None:
    """Stop where two results are not the same numbers."""
    difference = float((found.float() - expected.float()).abs().max() / expected.float().abs().max())
    if not difference <= _AGREE[found.dtype]:
        raise SystemExit(f"error: results differ by {difference:.2g} of the largest (limit {_AGREE[found.dtype]})")


class Turns:
    """Call a function with the next of several arguments each time."""

    def __init__(self, function: Callable[[Any], object], arguments: list[Any]) -> None:
        self.function, self.arguments, self.count = function, arguments, 0

    def __call__(self) -> None:
        """One call."""
        self.count += 1
        self.function(self.arguments[self.count % len(self.arguments)])


def compare(tasks: Mapping[str, Callable[[], object]], repeats: int, work: Mapping[str, float]) -> dict[str, Any]:
    """Medians of every peer, and `work` by the time of the first."""
    figures = harness.interleave({name: timed(task) for name, task in tasks.items()}, repeats)
    seconds = {name: harness.summary(found) for name, found in figures.items()}
    medians = {name: found["median"] for name, found in seconds.items()}
    first = next(iter(tasks))
    rates = {unit: amount / medians[first] for unit, amount in work.items()}
    ratios = {name: median / medians[first] for name, median in medians.items() if name != first}
    return {"seconds": seconds, **rates, "ratios": ratios}


def linears(models: list[str], dtypes: list[str], rows: list[int], repeats: int) -> list[dict[str, Any]]:
    """Linear at every shape; printed and returned."""
    results = []
    library = dispatch.choice().library
    for model in models:
        for k, n in _SHAPES[model]:
            for dtype in dtypes:
                weights = [torch.randn(n, k).mul_(k**-0.5).to(_DTYPES[dtype])]
                size = weights[0].nbytes
                weights += [weights[0].clone() for _ in range(min(64, _TURNING_BYTES[model] // size))]
                packed = [pack_linear(weight) for weight in weights]
                for m in rows:
                    x = torch.randn(m, k).to(_DTYPES[dtype])
                    out = torch.empty(m, n, dtype=x.dtype)
                    agree(linear(x, packed[0]), F.linear(x, weights[0]))
                    tasks: dict[str, Callable[[], object]] = {
                        "herd": Turns(lambda weight, x=x, out=out: linear(x, weight, out), packed),
                        "torch": Turns(lambda weight, x=x: F.linear(x, weight), weights),
                    }
                    if library is not None and m == 1:
                        tasks["read"] = Turns(lambda weight: library.read(weight.data.data_ptr(), weight.size_bytes), packed)
                    found = compare(tasks, repeats, {"gb_per_s": size / GB, "gflop_per_s": 2 * m * n * k / GB})
                    results.append({"model": model, "k": k, "n": n, "dtype": dtype, "m": m, **found})
    rows_of = [(f"{r['model']} {r['k']}x{r['n']} {r['dtype']} M={r['m']}", r) for r in results]
    show("linear", rows_of)
    return results


def attention_inputs(model: str, context: int, tokens: int, dtype: torch.dtype, cache_dtype: torch.dtype) -> dict[str, Any]:
    """Keys and values of one sequence: in scattered blocks of 16 for herd, in one piece for torch."""
    heads, kv_heads, head_dim = _HEADS[model]
    num_blocks = -(-context // 16)
    sizes = {"num_layers": 1, "num_blocks": num_blocks, "block_size": 16, "num_kv_heads": kv_heads, "head_dim": head_dim}
    keys, values = make_cache(**sizes, dtype=cache_dtype)
    for cache in (keys, values):
        numbers = torch.randn(*cache.shape[:-1], head_dim)
        cache.copy_(quantise(numbers) if cache_dtype == torch.int8 else numbers)
    order = torch.randperm(num_blocks)
    batch = plan_batch(order[None].numpy(), first=[context - tokens], lengths=[tokens], num_blocks=num_blocks, block_size=16)
    held = [cache[0][order].flatten(0, 1)[:context] for cache in (keys, values)]
    held = [dequantise(rows).to(dtype) if cache_dtype == torch.int8 else rows for rows in held]
    whole = [rows.transpose(0, 1)[None].contiguous() for rows in held]
    q = torch.randn(tokens, heads, head_dim).to(dtype)
    return {"q": q, "keys": keys[0], "values": values[0], "batch": batch, "whole": whole}


def attentions(kind: str, cases: list[tuple[str, str, str, int, int]], repeats: int) -> list[dict[str, Any]]:
    """Attention of (model, dtype, dtype of the cache, context, new tokens); printed and returned."""
    results = []
    library = dispatch.choice().library
    for model, dtype, cached, context, tokens in cases:
        made = attention_inputs(model, context, tokens, _DTYPES[dtype], _CACHE_DTYPES[cached])
        heads, _, head_dim = _HEADS[model]
        out = torch.empty_like(made["q"])
        q_NTH = made["q"].transpose(0, 1)[None].contiguous()
        k, v = made["whole"]
        causal = tokens == context

        def herd(made: dict[str, Any] = made, out: Tensor = out) -> Tensor:
            return paged_attention(made["q"], made["keys"], made["values"], made["batch"], out)

        def peer(q: Tensor = q_NTH, k: Tensor = k, v: Tensor = v, causal: bool = causal) -> Tensor:
            return F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=True)

        agree(herd(), peer()[0].transpose(0, 1))
        tasks: dict[str, Callable[[], object]] = {"herd": herd, "torch": peer}
        if cached != dtype:
            wider = attention_inputs(model, context, tokens, _DTYPES[dtype], _DTYPES[dtype])
            tasks["wider"] = lambda wider=wider, out=out: paged_attention(wider["q"], wider["keys"], wider["values"], wider["batch"], out)
        if library is not None and tokens == 1:
            halves = [made["keys"], made["values"]]
            tasks["read"] = lambda halves=halves: [library.read(half.data_ptr(), half.nbytes) for half in halves]
        size = 2 * context * made["keys"][0, 0].nbytes
        seen = context if tokens == 1 else context * (context + 1) / 2
        found = compare(tasks, repeats, {"gb_per_s": size / GB, "gflop_per_s": 4 * seen * heads * head_dim / GB})
        results.append({"model": model, "dtype": dtype, "cache_dtype": cached, "context": context, "tokens": tokens, **found})
    names = [r["dtype"] if r["dtype"] == r["cache_dtype"] else f"{r['dtype']} over {r['cache_dtype']}" for r in results]
    show(kind, [(f"{r['model']} {name} context {r['context']}", r) for name, r in zip(names, results, strict=True)])
    return results


def show(title: str, rows: list[tuple[str, dict[str, Any]]]) -> None:
    """One line for each case."""
    lines = []
    for name, result in rows:
        seconds, ratios = result["seconds"], result["ratios"]
        times = [f"{seconds[peer]['median'] * 1e6:,.1f}" if peer in seconds else "" for peer in ("herd", "torch")]
        read = f"{100 * seconds['read']['median'] / seconds['herd']['median']:.0f} %" if "read" in seconds else ""
        rates = (f"{result['gb_per_s']:.1f}", f"{result['gflop_per_s']:.0f}")
        wider = f"{ratios['wider']:.2f} x" if "wider" in ratios else ""
        lines.append((name, *times, *rates, f"{ratios['torch']:.2f} x", wider, read))
    print(f"{title}: {dispatch.table()[0].runs}; torch {torch.__version__}, {torch.get_num_threads()} threads")
    harness.table(("", "herd us", "torch us", "GB/s", "GFLOP/s", "torch/herd", "wider/herd", "of read"), lines)


def main() -> None:
    """Run what the command line asks for."""
    options = harness.parser(__doc__, repeats=5)
    options.add_argument("--only", nargs="+", choices=("linear", "decode", "prefill"), default=["linear", "decode", "prefill"])
    options.add_argument("--models", nargs="+", choices=tuple(_SHAPES), default=list(_SHAPES))
    options.add_argument("--dtypes", nargs="+", choices=tuple(_DTYPES), default=list(_DTYPES))
    options.add_argument("--rows", nargs="+", type=int, default=list(_ROWS))
    options.add_argument("--threads", type=int, default=dispatch.usable_cores(), help="threads of both (default: all cores)")
    chosen = options.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(chosen.threads)
    dispatch.set_num_threads(chosen.threads)
    results: dict[str, Any] = {"table": [row.runs for row in dispatch.table()], "threads": chosen.threads}
    with torch.inference_mode():
        if "linear" in chosen.only:
            results["linear"] = linears(chosen.models, chosen.dtypes, chosen.rows, chosen.repeats)
        heads = [("cria", "float32"), ("1b", "bfloat16"), ("8b", "bfloat16")]
        if "decode" in chosen.only:
            cases = [(model, dtype, kind, context, 1) for model, dtype in heads for context in _CONTEXTS for kind in (dtype, "int8")]
            results["decode"] = attentions("decode", cases, chosen.repeats)
        if "prefill" in chosen.only:
            results["prefill"] = attentions(
                "prefill", [(model, dtype, kind, 512, 512) for model, dtype in heads for kind in (dtype, "int8")], chosen.repeats
            )
    harness.report(chosen.json, "kernels", PACKAGES, results)


if __name__ == "__main__":
    main()
