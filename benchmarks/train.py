"""Training: tokens a second of herd's step beside a plain loop around transformers' Llama, and litgpt's where it is installed.

    python -m benchmarks.train [--json FILE] [--repeats N] [--shape NAME] [--threads N]

Same shape, same rows, same precision (bf16 autocast over float32 masters), same optimiser (fused AdamW, clipping by norm); peers take turns
in one process. A row is one document, so that a plain causal loop trains on the same thing. The losses of the first step have to agree. MFU
is by the best square bf16 matrix product of this machine.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks import harness
from herd.model.config import ModelConfig
from herd.model.init import initialise
from herd.model.transformer import Transformer
from herd.train.config import SourceConfig, StageConfig
from herd.train.optimizer import build_adamw
from herd.train.speed import measured_peak
from herd.train.step import train_step

PACKAGES = ("llama-herd", "torch", "transformers", "litgpt")
SHAPES: dict[str, tuple[int, int, int, int, int, int, int, int]] = {
    # vocabulary, width, ffn, layers, heads, KV heads, tokens in a row, rows a step
    "8m": (8448, 256, 768, 8, 4, 1, 512, 8),
    "30m": (16640, 384, 1024, 12, 6, 2, 1024, 4),
    "110m": (32000, 768, 2048, 12, 12, 4, 1024, 4),
}
Step = Callable[[], float]


def _config(shape: str) -> ModelConfig:
    vocab, dim, ffn, layers, heads, kv_heads, length, _ = SHAPES[shape]
    return ModelConfig(
        vocab_size=vocab,
        hidden_size=dim,
        intermediate_size=ffn,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=dim // heads,
        max_position_embeddings=length,
        tie_word_embeddings=True,
    )


def _stage(shape: str) -> StageConfig:
    *_, length, rows = SHAPES[shape]
    source = SourceConfig(name="random", path="-")
    return StageConfig(sources=(source,), num_steps=100, sequence_length=length, batch_size=rows, micro_batch_size=rows, lr=3e-4)


def _batch(shape: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    vocab, *_, length, rows = SHAPES[shape]
    tokens = np.random.default_rng(0).integers(0, vocab, (rows, length + 1)).astype(np.int32)
    counts = np.ones(tokens.shape, dtype=np.bool_)
    counts[:, 0] = False
    return tokens, np.zeros(tokens.shape, dtype=np.int16), counts


def herd_step(shape: str) -> tuple[Transformer, Step]:
    """Herd's own step, and its model, whose weights the peers take."""
    with torch.device("meta"):
        model = Transformer(_config(shape))
    initialise(model, seed=1)
    stage, batch = _stage(shape), _batch(shape)
    optimizer = build_adamw(model, stage)
    return model, lambda: train_step(model, optimizer, batch, stage, lr=3e-4).loss


def _plain_step(model: Any, logits: Callable[[torch.Tensor], torch.Tensor], shape: str) -> Step:
    """The loop that anyone would write."""
    tokens = torch.from_numpy(_batch(shape)[0]).long()
    stage = _stage(shape)
    optimizer = build_adamw(model, stage)

    def step() -> float:
        with torch.autocast("cpu", torch.bfloat16):
            out = logits(tokens[:, :-1])
        loss = F.cross_entropy(out.float().flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), stage.grad_clip)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step


def transformers_step(shape: str, weights: dict[str, torch.Tensor]) -> Step:
    """LlamaForCausalLM with SDPA."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = _config(shape)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.num_hidden_layers,
            num_attention_heads=config.num_attention_heads,
            num_key_value_heads=config.num_key_value_heads,
            head_dim=config.head_dim,
            max_position_embeddings=config.max_position_embeddings,
            rms_norm_eps=config.rms_norm_eps,
            tie_word_embeddings=True,
            use_cache=False,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
            attn_implementation="sdpa",
        )
    )
    model.load_state_dict(weights, strict=False)
    model.train()
    return _plain_step(model, lambda tokens: model(tokens).logits, shape)


def litgpt_step(shape: str) -> Step:
    """Litgpt's GPT of the same shape, with its own initial weights: its fused layout is not converted for a measure of speed."""
    from litgpt.config import Config
    from litgpt.model import GPT

    vocab, dim, ffn, layers, heads, kv_heads, length, _ = SHAPES[shape]
    model = GPT(
        Config(
            name="shape",
            block_size=length,
            vocab_size=vocab,
            padded_vocab_size=vocab,
            n_layer=layers,
            n_head=heads,
            n_embd=dim,
            n_query_groups=kv_heads,
            rotary_percentage=1.0,
            parallel_residual=False,
            bias=False,
            norm_class_name="RMSNorm",
            mlp_class_name="LLaMAMLP",
            intermediate_size=ffn,
            rope_base=500_000,
        )
    )
    model.lm_head.weight = model.transformer.wte.weight
    return _plain_step(model, model, shape)


class _Clock:
    """Times turns of a step on the wall and in processor seconds; the latter holds where other programs share the cores."""

    def __init__(self, step: Step, num_tokens: int, seconds: float) -> None:
        self.step, self.num_tokens, self.seconds = step, num_tokens, seconds
        self.wall: list[float] = []

    def turn(self) -> float:
        """Tokens a processor second over at least so many seconds."""
        count, started, used = 0, time.perf_counter(), time.process_time()
        while count == 0 or time.perf_counter() - started < self.seconds:
            self.step()
            count += 1
        tokens = count * self.num_tokens
        self.wall.append(tokens / (time.perf_counter() - started))
        return tokens / (time.process_time() - used)


def main() -> None:
    """Measure and print."""
    options = harness.parser(__doc__, repeats=3)
    options.add_argument("--shape", choices=SHAPES, default="30m", help="model and batch (default 30m)")
    options.add_argument("--threads", type=int, default=harness.cores(), help="CPU threads (default: the cores)")
    options.add_argument("--seconds", type=float, default=4.0, help="of each turn of each peer (default 4)")
    args = options.parse_args()
    torch.set_num_threads(args.threads)
    *_, length, rows = SHAPES[args.shape]
    model, ours = herd_step(args.shape)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    steps: dict[str, Step] = {"herd": ours, "transformers": transformers_step(args.shape, weights)}
    first = {name: step() for name, step in steps.items()}
    if abs(first["herd"] - first["transformers"]) > 2e-2:
        raise SystemExit(f"error: the first losses differ: {first}")
    try:
        steps["litgpt"] = litgpt_step(args.shape)
        steps["litgpt"]()
    except ImportError as error:  # an optional peer
        print(f"litgpt is left out: {error}", file=sys.stderr)
    clocks = {name: _Clock(step, rows * length, args.seconds) for name, step in steps.items()}
    figures = harness.interleave({name: clock.turn for name, clock in clocks.items()}, args.repeats)
    peak = measured_peak("cpu", torch.bfloat16, args.threads)
    flops = model.config.training_flops_per_token(length)
    results = {name: {"wall": harness.summary(clocks[name].wall), "cpu": harness.summary(values)} for name, values in figures.items()}
    wall, used = ({name: result[kind]["median"] for name, result in results.items()} for kind in ("wall", "cpu"))
    harness.table(
        ("", "tokens/s", "tokens/CPU-s", "MFU", "herd is", "by CPU-s"),
        [
            (
                name,
                f"{wall[name]:,.0f}",
                f"{used[name]:,.0f}",
                f"{wall[name] * flops / peak:.1%}",
                f"{wall['herd'] / wall[name]:.2f} x",
                f"{used['herd'] / used[name]:.2f} x",
            )
            for name in results
        ],
    )
    print(f"shape {args.shape}: {model.config.num_parameters:,} parameters, {rows} rows of {length}, {args.threads} threads; "
          f"best bf16 product {peak / 1e12:.2f} TFLOP/s")  # fmt: skip
    report = {"shape": args.shape, "threads": args.threads, "peak_flops": peak, "first_losses": first, "tokens": results}
    harness.report(
        args.json, "train", PACKAGES, {**report, "ratios": harness.ratios(wall, of="herd"), "ratios_cpu": harness.ratios(used, of="herd")}
    )


if __name__ == "__main__":
    main()
