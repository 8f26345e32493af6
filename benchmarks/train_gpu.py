"""Training on one NVIDIA GPU: tokens a second and MFU of herd's own step at the published shapes, rows of 8,192 tokens, one document a row.

    python -m benchmarks.train_gpu [--shapes 1b 3b] [--float8] [--largest] [--repeats N] [--seconds S] [--json FILE]

First what the card does: bytes a second of a copy, operations a second of bf16 and fp8 products of random numbers. Then whether the fused
loss is torch's on this card. Then each variant: bf16 autocast over float32 masters, fused AdamW, clipping by norm; eager, compiled blocks,
compiled with float8. Rows in memory at once and recomputation are chosen by the memory that the card has, and named; a variant that does
not fit is tried again with less. The first loss of every variant of a shape has to be that of its first one, and losses have to fall over
the steps, which repeat one batch; else the run ends with 1. `--largest` goes from 8B down until one step fits, a row at a time, with full
recomputation. Every line is printed at once; variants not begun after `--seconds` are named and left out. Weights are random.
"""

from __future__ import annotations

import gc
import math
import os
import statistics
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from benchmarks import harness
from benchmarks.gpu_model import timed
from herd.model.config import ModelConfig
from herd.model.presets import preset
from herd.model.transformer import Transformer
from herd.train import loss as losses
from herd.train.batch import Batch
from herd.train.config import SourceConfig, StageConfig
from herd.train.numerics import prepare_model
from herd.train.optimizer import build_adamw
from herd.train.step import train_step

PACKAGES = ("llama-herd", "torch", "triton", "numpy")
SHAPES = {"1b": "llama-3.2-1b", "3b": "llama-3.2-3b", "8b": "llama-3.1-8b"}
ROWS = {"1b": 8, "3b": 4, "8b": 2}
"""Rows a step of each shape."""
LENGTH = 8192
MOST_APART = {False: 1e-2, True: 5e-2}
"""Of first losses, by whether one of them is of float8."""
_WARM = 2
_MARGIN = 1.1
Recompute = Literal["none", "full"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Variant:
    """A shape and how its blocks run."""

    shape: str
    compiled: bool
    float8: bool = False

    @property
    def name(self) -> str:
        """In words."""
        return f"{self.shape} {'compiled' if self.compiled else 'eager'}{' float8' if self.float8 else ''}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Room:
    """Rows that are in memory at once, and whether activations are computed again."""

    micro: int
    recompute: Recompute

    def less(self) -> Room | None:
        """The next smaller one."""
        if self.micro > 1:
            return replace(self, micro=self.micro // 2)
        return replace(self, recompute="full") if self.recompute == "none" else None


def variants(shapes: list[str], *, float8: bool) -> list[Variant]:
    """The most telling first: the first shape compiled, eager, in float8; the others compiled; then the rest."""
    first, rest = shapes[0], shapes[1:]
    found = [Variant(shape=first, compiled=True), Variant(shape=first, compiled=False)]
    found += [Variant(shape=first, compiled=True, float8=True)] if float8 else []
    found += [Variant(shape=shape, compiled=True) for shape in rest]
    found += [Variant(shape=shape, compiled=True, float8=True) for shape in rest if float8]
    return found + [Variant(shape=shape, compiled=False) for shape in rest]


def state_bytes(config: ModelConfig) -> int:
    """What is there whatever the batch: masters, two moments and gradients in float32, matrices in 16 bits, the loss's own."""
    head = config.vocab_size * config.hidden_size
    return 18 * config.num_parameters + 14 * head + 2 * losses.CHUNK_BYTES


def row_bytes(config: ModelConfig, room: Room, *, compiled: bool, length: int = LENGTH) -> int:
    """Activations that one row keeps, by what the blocks save: float32 residuals, 16-bit inputs of products, attention's four.

    Keys and values count as many heads as queries, since torch 2.11's attention gets them repeated.
    """
    dim, ffn, query = config.hidden_size, config.intermediate_size, config.num_attention_heads * config.head_dim
    block = (12 * dim + 8 * query + 6 * ffn) if compiled else (26 * dim + 8 * query + 8 * ffn)
    layers = config.num_hidden_layers
    kept = 4 * dim * layers + 2 * block if room.recompute == "full" else block * layers
    return length * (kept + 12 * dim)


def choose_room(config: ModelConfig, rows: int, memory_bytes: int, *, compiled: bool) -> Room:
    """The most rows at once that fit by the formulas above, without recomputation where one row fits so."""
    room = Room(micro=rows, recompute="none")
    while _MARGIN * (state_bytes(config) + room.micro * row_bytes(config, room, compiled=compiled)) > memory_bytes:
        less = room.less()
        if less is None:
            break
        room = less
    return room


def random_model(config: ModelConfig, device: str) -> Transformer:
    """Random float32 weights, drawn on the device with the spread that a run begins with."""
    with torch.device("meta"):
        model = Transformer(config)
    model = model.to_empty(device=device)
    generator = torch.Generator(device=device).manual_seed(0)
    depth = 1 / math.sqrt(2 * config.num_hidden_layers)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            scale = config.initializer_range * (depth if name.endswith(("o_proj.weight", "down_proj.weight")) else 1.0)
            weight.fill_(1.0) if weight.dim() == 1 else weight.normal_(0.0, scale, generator=generator)
    return model


def make_batch(config: ModelConfig, rows: int, length: int) -> Batch:
    """Rows of random tokens, one document each."""
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, (rows, length + 1)).astype(np.int32)
    counts = np.ones(tokens.shape, dtype=np.bool_)
    counts[:, 0] = False
    return tokens, np.zeros(tokens.shape, dtype=np.int16), counts


def make_stage(variant: Variant, room: Room, rows: int, length: int) -> StageConfig:
    """The stage that a run of this variant would have."""
    return StageConfig(
        sources=(SourceConfig(name="random", path="-"),),
        num_steps=100,
        sequence_length=length,
        batch_size=rows,
        micro_batch_size=room.micro,
        lr=1e-4,
        compile=variant.compiled,
        float8=variant.float8,
        recompute=room.recompute,
    )


def make_step(config: ModelConfig, variant: Variant, room: Room, rows: int, *, device: str, length: int = LENGTH) -> Callable[[], float]:
    """One optimiser step over the batch; returns the loss before it."""
    model, batch = random_model(config, device), make_batch(config, rows, length)
    stage = make_stage(variant, room, rows, length)
    prepare_model(model, stage)
    optimizer = build_adamw(model, stage)
    return lambda: train_step(model, optimizer, batch, stage, lr=stage.lr).loss


def run_steps(step: Callable[[], float], *, repeats: int, wait: Callable[[], object]) -> dict[str, Any]:
    """Warm up, then time single steps: seconds of the first, of every timed one, and the losses of all."""
    seconds, found = [], []
    for _ in range(_WARM + repeats):
        wait()
        started = time.perf_counter()
        found.append(step())
        wait()
        seconds.append(time.perf_counter() - started)
    return {"first_step_s": seconds[0], "steps_s": seconds[_WARM:], "step_s": statistics.median(seconds[_WARM:]), "losses": found}


def rates(config: ModelConfig, rows: int, step_s: float, peaks: dict[str, float | None], *, length: int = LENGTH) -> dict[str, float]:
    """Tokens a second, and the share of every peak that the model's own operations come to."""
    tokens = rows * length / step_s
    achieved = tokens * config.training_flops_per_token(length)
    return {"tokens_per_s": tokens, "model_flops": achieved} | {f"mfu_{name}": achieved / peak for name, peak in peaks.items() if peak}


def problems(name: str, found: list[float], reference: float, *, float8: bool) -> list[str]:
    """What is wrong with a variant's losses."""
    told = []
    if not all(math.isfinite(loss) for loss in found):
        told.append(f"{name}: losses are no numbers: {found}")
    elif abs(found[0] - reference) > MOST_APART[float8]:
        told.append(f"{name}: its first loss is {found[0]:.4f}, not {reference:.4f}: it does not train the same thing")
    elif found[-1] >= found[0]:
        told.append(f"{name}: the loss of one batch does not fall: {found[0]:.4f} to {found[-1]:.4f}")
    return told


def _fp8_product(left: Tensor, right: Tensor, scale: Tensor, fast: bool) -> Tensor:
    return torch._scaled_mm(left, right, scale_a=scale, scale_b=scale, out_dtype=torch.bfloat16, use_fast_accum=fast)  # pyright: ignore[reportPrivateImportUsage]


def roofs(repeats: int = 20, size: int = 8192) -> dict[str, float]:
    """What this card does now: bytes read and written by a copy, and products of random matrices, a second."""
    left, right = (torch.empty(2**30, dtype=torch.float32, device="cuda") for _ in range(2))
    found = {"copy_bytes_per_s": 2 * left.nbytes / timed(lambda: left.copy_(right), repeats)}
    del left, right
    a, b = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    out = torch.empty_like(a)
    found["bf16_flops"] = 2 * size**3 / timed(lambda: torch.mm(a, b.t(), out=out), repeats)
    if torch.cuda.get_device_capability() >= (8, 9):
        x, y, one = a.to(torch.float8_e4m3fn), b.to(torch.float8_e4m3fn), torch.ones((), device="cuda")
        for name, fast in (("fp8_flops", True), ("fp8_flops_exact_sums", False)):
            found[name] = 2 * size**3 / timed(partial(_fp8_product, x, y.t(), one, fast), repeats)
    return found


class _ByTorch(losses.WholeVocabulary):
    """The whole vocabulary too, but the fused path does not know it: the loss by torch's own operations."""


def check_loss(device: str, *, rows: int = 1000, dim: int = 512, vocab: int = 128256) -> dict[str, float]:
    """The largest differences of the fused loss and its gradients to torch's path, over the largest value of each."""
    generator = torch.Generator(device=device).manual_seed(1)
    hidden = torch.randn(rows, dim, device=device, generator=generator).to(torch.bfloat16)
    weight = 0.2 * torch.randn(vocab, dim, device=device, generator=generator)
    targets = torch.randint(0, vocab, (rows,), device=device, generator=generator)
    targets[::7] = losses.IGNORE

    def run(vocabulary: losses.Vocabulary | None) -> tuple[Tensor, ...]:
        x, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        total = losses.cross_entropy_sum(x, w, targets, chunk=384, z_loss=1e-3, vocabulary=vocabulary)
        return total.detach(), *torch.autograd.grad(total, (x, w))

    pairs = zip(("loss", "grad_hidden", "grad_weight"), run(None), run(_ByTorch()), strict=True)
    return {name: float((mine - its).abs().max() / its.abs().max().clamp(min=1e-30)) for name, mine, its in pairs}


def _clear() -> None:
    torch.compiler.reset()
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()


def measure(variant: Variant, peaks: dict[str, float | None], *, repeats: int) -> dict[str, Any]:
    """A variant's figures, with less in memory at once where it did not fit."""
    config, rows = preset(SHAPES[variant.shape]), ROWS[variant.shape]
    room: Room | None = choose_room(config, rows, torch.cuda.mem_get_info()[1], compiled=variant.compiled)
    while room is not None:
        _clear()
        try:
            step = make_step(config, variant, room, rows, device="cuda")
            found = run_steps(step, repeats=repeats, wait=torch.cuda.synchronize)
        except torch.OutOfMemoryError:
            print(f"{variant.name}: {room.micro} rows with recompute={room.recompute} do not fit", flush=True)
            room, step = room.less(), None
            continue
        found |= rates(config, rows, found["step_s"], peaks)
        memory = {"peak_bytes": torch.cuda.max_memory_allocated(), "reserved_bytes": torch.cuda.max_memory_reserved()}
        return found | memory | {"rows": rows, "micro_batch_size": room.micro, "recompute": room.recompute}
    raise RuntimeError(f"{variant.name}: not one row of {LENGTH} fits on this card")


def largest(shapes: tuple[str, ...] = ("8b", "3b", "1b")) -> dict[str, Any]:
    """The first of some shapes, the largest first, whose whole step fits with one row and full recomputation; all that were tried."""
    tried: dict[str, Any] = {}
    for shape in shapes:
        config = preset(SHAPES[shape])
        variant, room = Variant(shape=shape, compiled=False), Room(micro=1, recompute="full")
        _clear()
        tried[shape] = {"parameters": config.num_parameters, "float32_states_bytes": 16 * config.num_parameters, "fits": False}
        try:
            step = make_step(config, variant, room, 1, device="cuda")
            # The moments come with the first update, so the second step is the one that shows whether it fits.
            found = [step() for _ in range(3)]
            torch.cuda.synchronize()
            tried[shape] |= {"fits": True, "losses": found}
        except torch.OutOfMemoryError as error:
            tried[shape]["why"] = str(error).splitlines()[0]
        step = None
        tried[shape]["peak_bytes"] = torch.cuda.max_memory_allocated()
        print(f"largest: {shape} with one row of {LENGTH}, full recomputation:", tried[shape], flush=True)
        if tried[shape]["fits"]:
            break
    return tried


def line(name: str, found: dict[str, Any]) -> str:
    """A variant's figures in one line."""
    shares = " ".join(f"{key} {found[key]:.1%}" for key in found if key.startswith("mfu_"))
    return (
        f"{name}: {found['tokens_per_s']:,.0f} tokens/s, {shares}, step {found['step_s']:.3f} s (first {found['first_step_s']:.1f}), "
        f"{found['rows']} rows, {found['micro_batch_size']} at once, recompute={found['recompute']}, "
        f"peak {found['peak_bytes'] / 1e9:.1f} GB, losses {found['losses'][0]:.4f} to {found['losses'][-1]:.4f}"
    )


def nameplate() -> float | None:
    """The vendor's dense bf16 figure for this card; None for one that herd's catalogue lacks, or where the catalogue cannot be read."""
    try:
        from herd.train.speed import nameplate_peak
    except ImportError as error:  # a machine with less than a whole installation can still measure
        print(f"no nameplate: {error}", file=sys.stderr)
        return None
    return nameplate_peak(torch.cuda.get_device_name())


def refuse_without_gpu() -> None:
    """Leave with a word where there is no GPU."""
    if not torch.cuda.is_available():
        raise SystemExit(
            "benchmarks.train_gpu needs an NVIDIA GPU that torch sees, and there is none here: nothing was measured.\n"
            "The training benchmark of processors is benchmarks.train; the kernel of the loss is tested without a GPU:\n"
            "pytest tests/kernels/test_triton.py"
        )


def _tried(name: str, task: Callable[[], Any], wrong: list[str]) -> Any:
    """What a task found; None, with its traceback told and the rest going on, where it failed."""
    try:
        return task()
    except Exception:
        wrong.append(f"{name} failed")
        print(f"{name} failed:\n{traceback.format_exc(limit=-8)}", flush=True)
        return None


def _check(report: dict[str, Any], wrong: list[str]) -> None:
    """Hold the fused loss to torch's, and go on without it where it is not the same."""
    found = _tried("the fused loss", lambda: check_loss("cuda"), wrong)
    report["loss_differences"] = found
    print("fused loss beside torch's, largest difference over largest value:", found, flush=True)
    if found is None or not max(found.values()) < 2e-2:
        wrong.append(f"the fused loss is not torch's: {found}; the figures below are without it")
        setattr(losses, "_is_fused", lambda *_: False)  # noqa: B010


def main() -> None:
    """Measure and print."""
    options = harness.parser(__doc__, repeats=5)
    options.add_argument("--shapes", nargs="+", choices=SHAPES, default=["1b"], help="published shapes, the first in every variant (1b)")
    options.add_argument("--float8", action="store_true", help="compiled blocks with float8 products too")
    options.add_argument("--largest", action="store_true", help="then the largest published shape whose step fits")
    options.add_argument("--only-largest", action="store_true", help="nothing but that")
    options.add_argument("--seconds", type=float, default=math.inf, help="begin nothing new after so many")
    args = options.parse_args()
    refuse_without_gpu()
    os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    begun = time.perf_counter()
    wrong: list[str] = []
    measured = roofs()
    report: dict[str, Any] = {"gpu": torch.cuda.get_device_name(), "memory_bytes": torch.cuda.mem_get_info()[1], "measured": measured}
    print(report["gpu"], {name: f"{value:.4g}" for name, value in measured.items()}, flush=True)
    peaks: dict[str, float | None] = {"measured": measured["bf16_flops"], "nameplate": _tried("the nameplate", nameplate, wrong)}
    _check(report, wrong)
    report["variants"], report["skipped"], first = {}, [], {}
    for variant in [] if args.only_largest else variants(args.shapes, float8=args.float8):
        if time.perf_counter() - begun > args.seconds:
            report["skipped"].append(variant.name)
            print(f"{variant.name}: skipped, {args.seconds:g} s are over", flush=True)
            continue
        found = _tried(variant.name, lambda variant=variant: measure(variant, peaks, repeats=args.repeats), wrong)
        if found is not None:
            report["variants"][variant.name] = found
            reference = first.setdefault(variant.shape, found["losses"][0])
            wrong += problems(variant.name, found["losses"], reference, float8=variant.float8)
            print(line(variant.name, found), f"[{time.perf_counter() - begun:.0f} s]", flush=True)
            harness.report(args.json, "train_gpu", PACKAGES, report)
    if args.largest or args.only_largest:
        if time.perf_counter() - begun > args.seconds:
            report["skipped"].append("largest")
            print(f"largest: skipped, {args.seconds:g} s are over", flush=True)
        else:
            report["largest"] = _tried("largest", largest, wrong)
    report["wrong"] = wrong
    harness.report(args.json, "train_gpu", PACKAGES, report)
    for problem in wrong:
        print(f"error: {problem}", file=sys.stderr)
    if wrong:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
