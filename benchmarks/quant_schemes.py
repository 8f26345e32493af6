"""What every scheme of `herd quantize` costs on one model: `python -m benchmarks.quant_schemes --calib FILE --eval FILE [--only int4]`.

Each scheme by each of its methods: perplexity, mean divergence (KL) from the original and the share of tokens with the same likeliest
successor, over the same held-out text, in float32; beside them bytes and bits a weight of the blocks. Then the answers that the issue of
quantisation asks for: whether GPTQ, AWQ and rotation are better than rounding at equal bits, whether int8 stays within half a percent, and
whether the mix under a budget is better than one scheme of no fewer bytes. GGUF files are written, read back as numbers and measured alike.

Divergences of methods are compared token by token: a difference is told with the standard error of its mean, and what is within two of
them is called even.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import harness
from herd.base.errors import DoesNotFitError
from herd.checkpoint.convert import convert
from herd.checkpoint.load import load_model
from herd.checkpoint.open import open_checkpoint
from herd.checkpoint.resolve import load_checkpoint_tokenizer, resolve_model
from herd.data.records import read_records
from herd.model.transformer import Transformer
from herd.quant.run import as_sequences, quantise_checkpoint
from herd.quant.schemes import GROUPS, Settings

PACKAGES = ("llama-herd", "torch")
GGUF = ("Q8_0", "Q6_K", "Q4_K", "Q4_0")


@dataclass(frozen=True, kw_only=True)
class Case:
    """A row of the table: what it is compared by, and how it is made."""

    scheme: str
    method: str
    make: Callable[[Path, Path], Any]
    facts: dict[str, Any] = field(default_factory=dict)


def cases(tokens: Tensor, budgets: list[float]) -> Iterator[Case]:
    """Every scheme by every method."""

    def by(method: str, **settings: Any) -> Callable[[Path, Path], Any]:
        return lambda source, target: quantise_checkpoint(source, target, Settings(method=method, **settings), tokens_BT=tokens)

    for scheme in ("fp8", "fp8-meta"):
        yield Case(scheme=scheme, method="rtn", make=by("rtn", scheme=scheme))
    for scheme, methods in (("int8", ("rtn", "gptq")), ("w8a8", ("rtn", "smooth"))):
        for method in methods:
            yield Case(scheme=scheme, method=method, make=by(method, scheme=scheme))
    for group in GROUPS:
        name = f"int4 g{group}"
        for method in ("rtn", "gptq", "awq"):
            yield Case(scheme=name, method=method, make=by(method, scheme="int4", group=group))
        for method in ("rtn", "gptq"):
            yield Case(scheme=name, method=f"rotate + {method}", make=by(method, scheme="int4", group=group, rotate=True))
    yield Case(scheme="int4 g128 asym", method="rtn", make=by("rtn", scheme="int4", symmetric=False))
    yield Case(scheme="int4 g128 asym", method="gptq", make=by("gptq", scheme="int4", symmetric=False))
    for bits in budgets:
        for method in ("rtn", "gptq"):
            yield Case(
                scheme=f"auto {bits:g}bpw", method=method, make=by(method, scheme="auto", budget_bits=bits), facts={"budget_bits": bits}
            )
    for kind in GGUF:

        def gguf(source: Path, target: Path, kind: str = kind) -> None:
            convert(source, target.with_suffix(".gguf"), to="gguf", quantisation=kind)

        yield Case(scheme=f"GGUF {kind}", method="rtn", make=gguf)


def there(named: list[str]) -> Iterator[Case]:
    """Models that are quantised already, by `NAME=MODEL`."""
    for text in named:
        name, _, model = text.partition("=")
        yield Case(scheme=name, method="as it is", make=lambda source, target, model=model: resolve_model(model))


def tokens_of(path: Path, data: Path, num: int, length: int, skip: int = 0) -> Tensor:
    """Sequences of a text, behind the first `skip` tokens."""
    tokenizer, ids = load_checkpoint_tokenizer(path), []
    for record in read_records(data):
        ids += tokenizer.encode(str(record["text"]))
        if len(ids) >= skip + num * length:
            break
    return as_sequences(ids[skip:], num=num, length=length)


@torch.no_grad()
def answers(model: Transformer, tokens_BT: Tensor) -> Iterator[Tensor]:
    """Log probabilities, a sequence at a time."""
    for row in tokens_BT:
        yield model(row[None])[0].log_softmax(-1)


@dataclass(kw_only=True)
class Figures:
    """Of one model: the divergence of every token, the mean loss, and the share of the same likeliest token."""

    kl: Tensor
    loss: float
    same_top: float


def judge(base: list[Tensor], model: Transformer, tokens_BT: Tensor) -> Figures:
    """A model beside the original's answers."""
    kls, losses, same = [], [], []
    for p, q, row in zip(base, answers(model, tokens_BT), tokens_BT, strict=True):
        kls.append((p.exp() * (p - q)).sum(-1))
        losses.append(-q[:-1].gather(-1, row[1:, None])[:, 0])
        same.append((p.argmax(-1) == q.argmax(-1)).float())
    return Figures(kl=torch.cat(kls), loss=float(torch.cat(losses).mean()), same_top=float(torch.cat(same).mean()))


def size_facts(target: Path) -> dict[str, Any]:
    """Bytes of all weights, and bits a weight of the blocks' matrices."""
    with open_checkpoint(target) as source:
        sizes = {name: (info.size_bytes, torch.Size(info.shape).numel()) for name, info in source.tensors.items()}
    blocks = [found for name, found in sizes.items() if name.endswith("_proj.weight")]
    return {
        "size_bytes": sum(size for size, _ in sizes.values()),
        "block_bits": 8 * sum(size for size, _ in blocks) / sum(count for _, count in blocks),
    }


def verdict(better: Tensor, worse: Tensor) -> str:
    """How one method's divergence stands to another's, token by token."""
    difference = (worse - better).double()
    error = float(difference.std()) / len(difference) ** 0.5
    mean = float(difference.mean())
    word = "better" if mean > 2 * error else "worse" if mean < -2 * error else "even"
    return f"{word}: KL {float(better.mean()):.5f} against {float(worse.mean()):.5f} (difference {mean:+.5f}, standard error {error:.5f})"


def findings(rows: dict[str, dict[str, Any]], kls: dict[str, Tensor]) -> dict[str, str]:
    """The questions and their answers."""
    found: dict[str, str] = {}
    for name, row in rows.items():
        plain = f"{row['scheme']} rtn"
        if name != plain and plain in kls:
            found[f"{name} against rounding"] = verdict(kls[name], kls[plain])
        if row["scheme"] == "int8":
            found[f"{name} within 0.5 % perplexity"] = (
                f"{'yes' if abs(row['perplexity_change']) <= 0.005 else 'no'}: {row['perplexity_change']:+.3%}"
            )
        if "budget_bits" in row:
            # What one scheme does with no fewer bytes, by the same method.
            uniform = [
                other for other, its in rows.items()
                if its["scheme"].startswith("int4") and its["method"] == row["method"] and its["block_bits"] >= row["block_bits"] - 1e-6
            ]  # fmt: skip
            for other in uniform:
                found[f"{name} ({row['block_bits']:.2f} bits) against {other} ({rows[other]['block_bits']:.2f} bits)"] = verdict(
                    kls[name], kls[other]
                )
    return found


def main() -> None:
    """Run what the command line asks for."""
    options = harness.parser(__doc__, repeats=1)
    options.add_argument("--model", default="cria")
    options.add_argument("--calib", type=Path, required=True, metavar="FILE")
    options.add_argument("--eval", type=Path, required=True, metavar="FILE")
    options.add_argument("--calib-samples", type=int, default=64)
    options.add_argument("--eval-samples", type=int, default=32)
    options.add_argument("--length", type=int, default=256)
    options.add_argument("--skip", type=int, default=0, help="tokens of --eval that are passed over")
    options.add_argument("--budgets", type=float, nargs="+", default=[4.25, 4.5, 5.0])
    options.add_argument(
        "--also", nargs="+", metavar="NAME=MODEL", default=[], help="quantised models that are there already, as qat=runs/qat/model"
    )
    options.add_argument("--only", nargs="+", metavar="WORD", help="schemes whose name begins with one of these")
    chosen = options.parse_args()
    path = resolve_model(chosen.model)
    calib = tokens_of(path, chosen.calib, chosen.calib_samples, chosen.length)
    held = tokens_of(path, chosen.eval, chosen.eval_samples, chosen.length, chosen.skip)
    original = load_model(path, dtype="float32")
    base = list(answers(original, held))
    loss = judge(base, original, held).loss
    print(f"{held.numel():,} tokens, perplexity {torch.tensor(loss).exp():.3f} before, {size_facts(path)}", file=sys.stderr)
    rows: dict[str, dict[str, Any]] = {}
    kls: dict[str, Tensor] = {}
    for case in [*cases(calib, chosen.budgets), *there(chosen.also)]:
        if chosen.only and not case.scheme.startswith(tuple(chosen.only)):
            continue
        with tempfile.TemporaryDirectory() as folder:
            target = Path(folder) / "model"
            try:
                made = case.make(path, target)
            except DoesNotFitError as error:
                print(f"{case.scheme} {case.method}: left out, {error.message}", file=sys.stderr)
                continue
            target = made if isinstance(made, Path) else target if target.exists() else target.with_suffix(".gguf")
            figures, size = judge(base, load_model(target, dtype="float32"), held), size_facts(target)
        name = f"{case.scheme} {case.method}"
        kls[name] = figures.kl
        rows[name] = {
            "scheme": case.scheme,
            "method": case.method,
            **size,
            "perplexity_change": float(torch.tensor(figures.loss - loss).exp()) - 1,
            "mean_kl": float(figures.kl.mean()),
            "same_top": figures.same_top,
            **case.facts,
        }
        print(f"{name}: KL {rows[name]['mean_kl']:.5f}, perplexity {rows[name]['perplexity_change']:+.2%}", file=sys.stderr)
        if chosen.json is not None:  # what has been measured is kept, should the rest be cut off
            chosen.json.write_text(json.dumps({"rows": rows}), encoding="utf-8")
    cells = [
        (
            *(row["scheme"], row["method"], f"{row['block_bits']:.2f}", f"{row['size_bytes'] / 1e6:.2f}"),
            *(f"{row['perplexity_change']:+.2%}", f"{row['mean_kl']:.5f}", f"{row['same_top']:.1%}"),
        )
        for row in rows.values()
    ]
    harness.table(("scheme", "method", "bits", "MB", "perplexity", "KL", "same top"), cells)
    answered = findings(rows, kls)
    for question, answer in answered.items():
        print(f"{question}: {answer}")
    harness.report(chosen.json, "quant_schemes", PACKAGES, {"tokens": held.numel(), "rows": rows, "findings": answered})


if __name__ == "__main__":
    main()
