"""Training: tokens a second of herd's step beside plain loops around the Llamas of transformers, litgpt and torchtitan, where installed.

    python -m benchmarks.train [--json FILE] [--repeats N] [--shape NAME] [--threads N] [--peers NAME ...] [--profile]

Same shape, same weights, same rows, same precision (bf16 autocast over float32 masters, or float32 where the processor does not multiply
bf16), same optimiser (fused AdamW, clipping by norm); peers take turns in one process. A row is one document, so that a plain causal loop
trains on the same thing. The losses of the first step have to agree, or nothing is timed. Herd's turns have the memory of a run of herd
(`train.allocator`), the peers' what a plain loop has. `make peers` makes an environment that has all of them (`train_peers`).

MFU is by the best square matrix product of this machine in that precision, by the wall and by processor seconds: where other programs
share the cores, the wall's figure is theirs too. `--profile` prints where a step of herd goes in place of the comparison.
"""

from __future__ import annotations

import sys
import time
from contextlib import nullcontext

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks import harness
from benchmarks.train_peers import DTYPE, PEERS, SHAPES, Step, make_batch, make_config, make_stage
from herd.kernels import dispatch
from herd.model.init import initialise
from herd.model.transformer import Transformer
from herd.train.allocator import kept_memory
from herd.train.optimizer import build_adamw
from herd.train.step import train_step

PACKAGES = ("llama-herd", "torch", "transformers", "litgpt", "torchtitan")
MOST_APART = 2e-2
"""Of the losses of the first step: bf16's own noise."""
_PEAK_SIZES = (512, 1024, 2048)
_PEAK_SECONDS = 0.5


def herd_step(shape: str) -> tuple[Transformer, Step]:
    """Herd's own step, and its model, whose weights the peers take."""
    with torch.device("meta"):
        model = Transformer(make_config(shape))
    initialise(model, seed=1)
    stage, batch = make_stage(shape), make_batch(shape)
    optimizer = build_adamw(model, stage)
    return model, lambda: train_step(model, optimizer, batch, stage, lr=stage.lr).loss


def peak_flops(threads: int) -> tuple[float, float]:
    """FLOP/s of the best square product of some sizes, by the wall and by processor seconds of all threads."""
    wall = used = 0.0
    for size in _PEAK_SIZES:
        left, right = (torch.randn(size, size).to(DTYPE) for _ in range(2))
        out = left @ right
        begun = time.perf_counter()
        while time.perf_counter() - begun < _PEAK_SECONDS:
            started, spent = time.perf_counter(), time.process_time()
            torch.mm(left, right, out=out)
            spent, started = time.process_time() - spent, time.perf_counter() - started
            wall, used = max(wall, 2 * size**3 / started), max(used, 2 * size**3 / spent * threads)
    return wall, used


class _Clock:
    """Times turns of a step on the wall and in processor seconds; the latter holds where other programs share the cores."""

    def __init__(self, step: Step, num_tokens: int, seconds: float, *, kept: bool) -> None:
        self.step, self.num_tokens, self.seconds, self.kept = step, num_tokens, seconds, kept
        self.wall: list[float] = []

    def turn(self) -> float:
        """Tokens a processor second over at least so many seconds; with the memory of a run of herd where `kept`, else as it is."""
        with kept_memory() if self.kept else nullcontext():
            if self.kept:
                self.step()  # a run takes its memory once
            return self._timed()

    def _timed(self) -> float:
        count, started, used = 0, time.perf_counter(), time.process_time()
        while count == 0 or time.perf_counter() - started < self.seconds:
            self.step()
            count += 1
        tokens = count * self.num_tokens
        self.wall.append(tokens / (time.perf_counter() - started))
        return tokens / (time.process_time() - used)


def _first_losses(shape: str, wanted: list[str]) -> tuple[Transformer, dict[str, Step], dict[str, float]]:
    """Herd's model, the step of every peer that is installed, and their losses of the first step."""
    model, ours = herd_step(shape)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    steps: dict[str, Step] = {"herd": ours}
    for name in wanted:
        try:
            steps[name] = PEERS[name](shape, weights)
        except ImportError as error:
            print(f"{name} is left out, since it is not installed ({error}); see docs/benchmarks.md", file=sys.stderr)
    first = {name: step() for name, step in steps.items()}
    for name, loss in first.items():
        if abs(loss - first["herd"]) > MOST_APART:
            raise SystemExit(f"error: {name}'s first loss is {loss:.4f}, herd's {first['herd']:.4f}: they do not train the same thing")
    return model, steps, first


def _profile(shape: str) -> None:
    _, step = herd_step(shape)
    with kept_memory():
        step()
        _profiled(step)


def _profiled(step: Step) -> None:
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        step()
    print(profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=25))


def main() -> None:
    """Measure and print."""
    options = harness.parser(__doc__, repeats=3)
    options.add_argument("--shape", choices=SHAPES, default="30m", help="model and batch (default 30m)")
    options.add_argument("--threads", type=int, default=harness.cores(), help="CPU threads (default: the cores)")
    options.add_argument("--seconds", type=float, default=4.0, help="of each turn of each peer (default 4)")
    options.add_argument("--peers", nargs="*", choices=PEERS, default=list(PEERS), help="whom to measure beside herd (default all)")
    options.add_argument("--profile", action="store_true", help="print where a step of herd goes, and stop")
    args = options.parse_args()
    torch.set_num_threads(args.threads)
    dispatch.set_num_threads(args.threads)
    if args.profile:
        _profile(args.shape)
        return
    *_, length, rows = SHAPES[args.shape]
    model, steps, first = _first_losses(args.shape, args.peers)
    clocks = {name: _Clock(step, rows * length, args.seconds, kept=name == "herd") for name, step in steps.items()}
    figures = harness.interleave({name: clock.turn for name, clock in clocks.items()}, args.repeats)
    peak, peak_used = peak_flops(args.threads)
    flops = model.config.training_flops_per_token(length)
    results = {name: {"wall": harness.summary(clocks[name].wall), "cpu": harness.summary(values)} for name, values in figures.items()}
    wall, used = ({name: result[kind]["median"] for name, result in results.items()} for kind in ("wall", "cpu"))
    mfu = {name: {"wall": wall[name] * flops / peak, "cpu": used[name] * args.threads * flops / peak_used} for name in results}
    # A turn's peers ran one after the other: the ratio of a turn is of one state of the machine.
    ratio = {
        name: harness.summary([ours / its for ours, its in zip(figures["herd"], values, strict=True)]) for name, values in figures.items()
    }
    harness.table(
        ("", "tokens/s", "MFU", "tokens/CPU-s", "MFU by CPU-s", "herd is", "by CPU-s", "median of turns"),
        [
            (
                name,
                f"{wall[name]:,.0f}",
                f"{mfu[name]['wall']:.1%}",
                f"{used[name]:,.0f}",
                f"{mfu[name]['cpu']:.1%}",
                f"{wall['herd'] / wall[name]:.2f} x",
                f"{used['herd'] / used[name]:.2f} x",
                f"{ratio[name]['median']:.2f} x",
            )
            for name in results
        ],
    )
    kind = str(DTYPE).removeprefix("torch.")
    print(f"shape {args.shape}: {model.config.num_parameters:,} parameters, {rows} rows of {length}, {args.threads} threads; "
          f"best {kind} product {peak / 1e12:.2f} TFLOP/s, {peak_used / 1e12:.2f} by processor seconds")  # fmt: skip
    report = {
        "shape": args.shape,
        "threads": args.threads,
        "dtype": kind,
        "peak_flops": peak,
        "peak_flops_cpu": peak_used,
        "first_losses": first,
    }
    report |= {"tokens": results, "mfu": mfu, "ratios_of_turns": ratio}
    harness.report(
        args.json, "train", PACKAGES, {**report, "ratios": harness.ratios(wall, of="herd"), "ratios_cpu": harness.ratios(used, of="herd")}
    )


if __name__ == "__main__":
    main()
