"""The GPU runner on one NVIDIA GPU: `python -m benchmarks.gpu [--only check|decode] [--formats bf16 fp8 int4] [--streams N] [--json FILE]`.

Random weights of the 8B shape. In one call, so that the shares mean something: what the memory reads a second and what torch's matrix
product computes a second; then, over herd's engine, decoding alone and 256 streams at once. `check` goes first: a token alone, among others
and in chunks has to get the same bits on this very GPU, or no figure counts. Without a GPU it says so and measures nothing.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from benchmarks import harness
from herd.engine.batch import Piece, ragged
from herd.engine.build import build_engine
from herd.engine.engine import Engine
from herd.engine.memory import EngineConfig
from herd.engine.params import TokenParams
from herd.engine.stream import TokenRequest, Tokens
from herd.kernels import torch_compat
from herd.kernels.quantised import FP8_DTYPE, QuantWeight
from herd.model.config import ModelConfig
from herd.model.linear import Linear
from herd.model.presets import preset
from herd.model.quant_linear import QuantLinear
from herd.model.transformer import Transformer

PACKAGES = ("llama-herd", "torch", "triton")
FORMATS = ("bf16", "fp8", "int4")
GB = 1e9
TARGETS = {"bf16": 240.0, "fp8": 400.0}
"""Tokens a second alone that are aimed at on an H200."""


def random_model(config: ModelConfig, kind: str, device: str, dtype: torch.dtype = torch.bfloat16) -> Transformer:
    """A model of random weights, made on the device: fp8 (rows, over fp8 inputs) or int4 (groups of 128) in the blocks; the head stays."""
    with torch.device("meta"):
        model = Transformer(config).to(dtype)
    model = model.to_empty(device=device).eval().requires_grad_(False)
    torch.manual_seed(0)
    for weight in model.parameters():
        weight.fill_(1.0) if weight.dim() == 1 else weight.normal_(0.0, 0.02)
    for block in model.model.layers:
        for parent in (block.self_attn, block.mlp):
            for name, module in list(parent.named_children()):  # pyright: ignore[reportAttributeAccessIssue]
                if isinstance(module, Linear) and kind != "bf16":
                    setattr(parent, name, QuantLinear(_random_matrix(module.weight, kind), dtype))
    return model


def _random_matrix(weight: Tensor, kind: str) -> QuantWeight:
    n, k = weight.shape
    if kind == "fp8":
        values = (weight.float() / 0.0002).clamp(-448, 448).to(FP8_DTYPE)
        return QuantWeight(kind="fp8", values=values, scales=torch.full((n, 1), 0.0002, device=weight.device), activation="fp8")
    group = min(128, k)
    values = torch.randint(0, 256, (n, k // 2), dtype=torch.uint8, device=weight.device)
    return QuantWeight(kind="int4", values=values, scales=torch.full((n, k // group), 0.005, device=weight.device))


def timed(function: Any, repeats: int) -> float:
    """Seconds a call, the median of events around each."""
    function()
    found = []
    for _ in range(repeats):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        function()
        end.record()
        end.synchronize()
        found.append(begin.elapsed_time(end) / 1e3)
    return statistics.median(found)


def roofs(repeats: int) -> dict[str, float]:
    """Bytes read a second by a sum over 8 GiB, bytes moved a second by a copy, and operations a second of torch's products."""
    wide = torch.zeros(2 * 2**30, dtype=torch.float32, device="cuda")
    half = len(wide) // 2
    found = {"read_bytes_per_s": wide.nbytes / timed(wide.sum, repeats)}
    found["copy_bytes_per_s"] = wide.nbytes / timed(lambda: wide[:half].copy_(wide[half:]), repeats)
    del wide
    size = 8192
    a, b = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    found["bf16_flops"] = 2 * size**3 / timed(lambda: a @ b.t(), repeats)
    if torch.cuda.get_device_capability() >= (8, 9):
        x, y, scale = a.to(FP8_DTYPE), b.to(FP8_DTYPE), torch.ones(size, 1, device="cuda")
        found["fp8_flops"] = 2 * size**3 / timed(lambda: torch_compat.scaled_mm(x, y.t(), scale, scale.t(), torch.bfloat16), repeats)
    return found


def read_per_token(model: Transformer) -> int:
    """Bytes of weights that a token alone reads: all matrices; norms and one row of the embedding are next to nothing."""
    from herd.engine.gpu.weights import stacks

    return sum(matrix.size_bytes for stack in stacks(model) for matrix in stack)


def check(config: ModelConfig, kind: str, device: str, *, length: int = 600) -> dict[str, Any]:
    """Scores of a prompt whole, in chunks and token by token, and of its last token among 40 others, on two layers: the same bits.

    Also how far they are from what the model itself computes by torch's products. Raises SystemExit where bits differ.
    """
    from herd.engine.gpu.runner import GpuRunner

    model = random_model(replace(config, num_hidden_layers=2), kind, device)
    blocks = -(-length // 16)
    sizes: dict[str, Any] = {"num_blocks": 2 * blocks + 50, "block_size": 16, "max_tokens": length, "score_rows": 64}
    runner = GpuRunner(model, max_sequences=64, context=length, **sizes)
    tokens = [(7919 * at + 13) % config.vocab_size for at in range(length)]
    table = list(range(blocks))

    def last(pieces: list[Piece]) -> Tensor:
        return torch.cat([torch.from_numpy(part.copy()) for _, part in runner.run(ragged(pieces))])[0]

    def piece(begin: int, end: int) -> Piece:
        return Piece(tokens=tokens[begin:end], first=begin, blocks=table, rows=range(end - 1, end))

    whole = last([piece(0, length)])
    last([piece(0, length // 3)])
    cut = last([piece(length // 3, length)])
    last([piece(0, length - 1)])
    alone = last([piece(length - 1, length)])
    others = [Piece(tokens=[at], first=0, blocks=[blocks + at], rows=range(1)) for at in range(40)]
    among = last([piece(length - 1, length), *others])
    with torch.inference_mode():
        model_says = model(torch.tensor([tokens], device=device))[0, -1].cpu()
    same = {"in chunks": torch.equal(cut, whole), "as the next token": torch.equal(alone, whole), "among 40": torch.equal(among, whole)}
    wrong = [name for name, equal in same.items() if not equal]
    if wrong:
        raise SystemExit(f"{kind}: the scores of a token differ {' and '.join(wrong)} from those of the whole prompt: no figure counts")
    far = float((whole.log_softmax(-1) - model_says.float().log_softmax(-1)).abs().max())
    return {"same_bits": True, "largest_difference_of_logprobs_to_torch": far}


def requests(count: int, prompt: int, new: int, vocab: int) -> Iterator[TokenRequest]:
    """Greedy requests of distinct prompts."""
    params = TokenParams(max_tokens=new, temperature=0.0)
    for number in range(count):
        yield TokenRequest(prompt=tuple((number * 131 + 7 * at) % vocab for at in range(prompt)), params=params, reuse_prefix=False)


def generate(engine: Engine, count: int, prompt: int, new: int) -> dict[str, float]:
    """Wall time of so many requests at once: of all, and from the last first token to the end, which is decoding alone."""
    vocab = engine.vocab_size
    begun = time.perf_counter()
    streams = [engine.submit(request) for request in requests(count, prompt, new, vocab)]
    num, first = [0] * count, [0.0] * count
    for at, stream in enumerate(streams):
        for event in stream:
            if isinstance(event, Tokens):
                first[at] = first[at] or time.perf_counter()
                num[at] += len(event.ids)
    ended = time.perf_counter()
    assert num == [new] * count, "a request ended early"
    found = {"tokens_per_s": count * new / (ended - begun), "seconds": ended - begun}
    if count == 1:
        found["decode_tokens_per_s"] = (new - 1) / (ended - first[0])
    return found


def decode(config: ModelConfig, kind: str, device: str, *, prompt: int, new: int, streams: int, repeats: int) -> dict[str, Any]:
    """One stream and many, over the engine. Graphs are captured by a first run that is not counted."""
    model = random_model(config, kind, device)
    size = read_per_token(model)
    per_sequence = -(-(prompt + new) // 16) + 1
    sizes = EngineConfig(
        context=prompt + new,
        token_budget=max(streams, 2048),
        max_sequences=streams,
        score_rows=streams,
        num_blocks=1 + streams * per_sequence,
    )
    engine = build_engine(model, sizes)
    generate(engine, 1, prompt, new)
    alone = statistics.median(generate(engine, 1, prompt, new)["decode_tokens_per_s"] for _ in range(repeats))
    found: dict[str, Any] = {"bytes_per_token": size, "decode_tokens_per_s": alone}
    if streams > 1:
        generate(engine, streams, prompt, new)
        found["streams"] = streams
        found["streams_tokens_per_s"] = statistics.median(generate(engine, streams, prompt, new)["tokens_per_s"] for _ in range(repeats))
    engine.close()
    return found


def shares(found: dict[str, Any], measured: dict[str, float], config: ModelConfig, prompt: int, new: int) -> dict[str, float]:
    """Of the bandwidth and of the matrix products that this call measured: what decoding alone reads, and what all streams compute."""
    kv = config.kv_bytes_per_token(2) * prompt
    read = (found["bytes_per_token"] + kv) * found["decode_tokens_per_s"] / measured["read_bytes_per_s"]
    made = {"share_of_read_bandwidth": read}
    if "streams_tokens_per_s" in found:
        computed = found["streams_tokens_per_s"] * (prompt + new) / new  # a prompt's token costs what a new one does
        made["share_of_bf16_matmul"] = 2 * config.num_parameters * computed / measured["bf16_flops"]
    return made


def refuse_without_gpu() -> None:
    """Leave with a word where there is no GPU."""
    if not torch.cuda.is_available():
        raise SystemExit(
            "benchmarks.gpu needs an NVIDIA GPU that torch sees, and there is none here: nothing was measured.\n"
            "Its kernels are tested without one: pytest tests/kernels/test_triton.py"
        )


def main() -> None:
    """Run what was asked for and print it."""
    parser = harness.parser(__doc__, repeats=3)
    parser.add_argument("--only", choices=("check", "decode"), help="leave out what comes after")
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=list(FORMATS))
    parser.add_argument("--shape", default="llama-3.1-8b", help="a published shape, as llama-3.2-1b")
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--new", type=int, default=128)
    parser.add_argument("--streams", type=int, default=256)
    args = parser.parse_args()
    refuse_without_gpu()
    config, repeats = preset(args.shape), args.repeats
    measured = roofs(3 * repeats)
    report: dict[str, Any] = {"gpu": torch.cuda.get_device_name(), "shape": args.shape, "measured": measured, "formats": {}}
    print(report["gpu"], {name: f"{value:.4g}" for name, value in measured.items()})
    for kind in args.formats:
        found: dict[str, Any] = check(config, kind, "cuda")
        torch.cuda.empty_cache()
        if args.only != "check":
            streams = 1 if args.only == "decode" else args.streams
            found |= decode(config, kind, "cuda", prompt=args.prompt, new=args.new, streams=streams, repeats=repeats)
            found |= shares(found, measured, config, args.prompt, args.new)
        report["formats"][kind] = found
        torch.cuda.empty_cache()
        print(kind, {name: f"{value:.4g}" if isinstance(value, float) else value for name, value in found.items()}, flush=True)
    harness.report(args.json, "gpu", PACKAGES, report)


if __name__ == "__main__":
    main()
