"""The GPU runner on one NVIDIA GPU: `python -m benchmarks.gpu [--only PART ...] [--formats bf16 fp8 int4] [--seconds S] [--json FILE]`.

Random weights of the 8B shape. In one call, so that the shares mean something: what the memory reads a second and what torch's matrix
product computes a second; then decoding alone and 256 streams at once over the engine, and where a step's time goes. The parts, in order:

    check     a token alone, among others and in chunks has to get the same bits on this very GPU, or no figure counts
    engine    cria's answers alone, together, with and without steps launched ahead, and its scores beside the CPU's
    kernels   each product of a block by itself: bytes of weights a second, and torch's own product
    decode    one stream          streams   many at once          sweep   other tiles of the products (only where it is asked for)

What fails is told and the rest goes on; the call ends with 1. Without a GPU it says so and measures nothing.
"""

from __future__ import annotations

import gc
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

from benchmarks import harness
from benchmarks.gpu_model import roofs
from herd.model.presets import preset

PACKAGES = ("llama-herd", "torch", "triton")
FORMATS = ("bf16", "fp8", "int4")
PARTS = ("check", "engine", "kernels", "decode", "streams", "sweep")


def refuse_without_gpu() -> None:
    """Leave with a word where there is no GPU."""
    if not torch.cuda.is_available():
        raise SystemExit(
            "benchmarks.gpu needs an NVIDIA GPU that torch sees, and there is none here: nothing was measured.\n"
            "Its kernels are tested without one: pytest tests/kernels/test_triton.py"
        )


class Run:
    """One call: its parts one after another, each told as soon as it is known, until the time is up."""

    def __init__(self, args: Any) -> None:
        self.args, self.config, self.failed = args, preset(args.shape), False
        self.report: dict[str, Any] = {"measured": {}, "gpu": torch.cuda.get_device_name(), "shape": args.shape, "formats": {}}
        self._begun = time.perf_counter()

    def tell(self, what: str, found: dict[str, Any]) -> None:
        """A line, at once."""
        short = {name: f"{value:.4g}" if isinstance(value, float) else value for name, value in found.items()}
        print(f"[{time.perf_counter() - self._begun:6.1f} s] {what}", short, flush=True)

    def part(self, name: str, function: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What a part found; what broke it, where it broke; nothing where the time is up."""
        if self.args.seconds and time.perf_counter() - self._begun > self.args.seconds:
            print(f"{name}: left out, the {self.args.seconds} seconds are over", flush=True)
            return {"left_out": True}
        try:
            return function()
        except (Exception, SystemExit) as error:
            self.failed = True
            print(f"{name} FAILED: {type(error).__name__}: {error}", flush=True)
            traceback.print_exc(limit=-6)
            return {"failed": f"{type(error).__name__}: {error}"}
        finally:
            gc.collect()
            torch.cuda.empty_cache()

    def sound(self, name: str, found: dict[str, Any], *wanted: str) -> dict[str, Any]:
        """Told, and a failure where something that has to hold does not."""
        if not all(found[one] for one in wanted):
            self.failed = True
            name += " FAILED"
        self.tell(name, found)
        return found

    def each(self, name: str, lines: Iterator[tuple[str, dict[str, Any]]]) -> dict[str, Any]:
        """Lines that are told one by one, until the time is up."""
        found: dict[str, Any] = {}
        for line, figures in lines:
            found[line] = figures
            self.tell(line, figures)
            if self.args.seconds and time.perf_counter() - self._begun > self.args.seconds:
                print(f"{name}: the rest is left out, the {self.args.seconds} seconds are over", flush=True)
                break
        return found

    def all(self) -> None:
        """Every part that was asked for."""
        self.report["measured"] = self.part("roofs", lambda: roofs(3 * self.args.repeats))
        self.tell(self.report["gpu"], self.report["measured"])
        parts = {"check": self._check, "engine": self._engine, "kernels": self._kernels, "decode": self._decode, "sweep": self._sweep}
        for name, part in parts.items():
            wanted = name in self.args.only or (name == "decode" and "streams" in self.args.only)
            for kind in ("cria",) if name == "engine" else self.args.formats:
                if wanted:
                    self.report["formats"].setdefault(kind, {})[name] = self.part(f"{kind} {name}", partial(part, kind))

    def _check(self, kind: str) -> dict[str, Any]:
        from benchmarks.gpu_check import check

        return self.sound(f"{kind} check", check(self.config, kind, "cuda"), "same_bits", "finite")

    def _engine(self, name: str) -> dict[str, Any]:
        from benchmarks.gpu_check import check_engine

        caches = (None, "fp8") if torch.cuda.get_device_capability() >= (8, 9) else (None,)
        told = {cache or "bf16": check_engine("cuda", cache_dtype=cache) for cache in caches}
        return {
            cache: self.sound(f"{name} engine, cache {cache}", found, "same_tokens", "close", "steps_taken_ahead")
            for cache, found in told.items()
        }

    def _kernels(self, kind: str) -> dict[str, Any]:
        from benchmarks.gpu_kernels import kernels

        return self.each(f"{kind} kernels", kernels(self.config, kind, self.roof, self.args.repeats))

    def _sweep(self, kind: str) -> dict[str, Any]:
        from benchmarks.gpu_kernels import sweep

        return self.each(f"{kind} sweep", sweep(self.config, kind, self.roof, self.args.repeats))

    def _decode(self, kind: str) -> dict[str, Any]:
        from benchmarks.gpu_decode import decode, shares

        args, config = self.args, self.config
        sizes = {"prompt": args.prompt, "new": args.new}
        streams = args.streams if "streams" in args.only else 1
        found = decode(config, kind, **sizes, streams=streams, repeats=args.repeats, tell=self.tell)
        if "read_bytes_per_s" in self.report["measured"]:
            made = shares(found, self.report["measured"], config, **sizes)
            self.tell(f"{kind} shares", made)
            found |= made
        return found

    @property
    def roof(self) -> float:
        """Bytes that the memory reads a second; where that is not known, so many that shares mean nothing."""
        return self.report["measured"].get("read_bytes_per_s", 1.0)


def main() -> None:
    """Run what was asked for and print it."""
    parser = harness.parser(__doc__, repeats=3)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS[:-1]), help="these parts (default: all but sweep)")
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=list(FORMATS))
    parser.add_argument("--shape", default="llama-3.1-8b", help="a published shape, as llama-3.2-1b")
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--new", type=int, default=128)
    parser.add_argument("--streams", type=int, default=256)
    parser.add_argument("--seconds", type=float, help="begin nothing new after so many")
    args = parser.parse_args()
    refuse_without_gpu()
    run = Run(args)
    try:
        run.all()
    finally:
        harness.report(args.json, "gpu", PACKAGES, run.report)
    if run.failed:
        sys.exit(1)


if __name__ == "__main__":
    main()
