"""`herd convert` and `herd verify`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, cast

import typer

from herd.cli.load import JsonOption


def convert(
    source: Annotated[str, typer.Argument(metavar="SRC", help="A model: path, hub name or alias.")],
    target: Annotated[Path, typer.Argument(metavar="DST", help="Where to write; a folder, or a .gguf file.")],
    to: Annotated[str, typer.Option(help="hf, meta or gguf.")],
    shards: Annotated[int, typer.Option(help="meta: model-parallel shards.")] = 1,
    fp8: Annotated[bool, typer.Option("--fp8", help="meta: the 8-bit format of the released 405B.")] = False,
    dtype: Annotated[str | None, typer.Option(help="hf, meta: float32, bfloat16 or float16 instead of the stored dtype.")] = None,
    quantisation: Annotated[str, typer.Option("--quantisation", "-q", help="gguf: BF16, F16, F32, Q8_0, Q6_K, Q4_K or Q4_0.")] = "BF16",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is at DST.")] = False,
    json: JsonOption = False,
) -> None:
    """Convert a checkpoint between Hugging Face, Meta and GGUF. Memory stays at one shard and one tensor."""
    from herd.base.errors import UsageError, did_you_mean
    from herd.base.memory import gib
    from herd.base.progress import track_steps
    from herd.checkpoint.convert import convert as run
    from herd.checkpoint.resolve import resolve_model
    from herd.cli.output import note, print_json

    formats = ("hf", "meta", "gguf")
    if to not in formats:
        raise UsageError(f"unknown format {to!r}", hint=did_you_mean(to, formats, otherwise="formats: " + ", ".join(formats)))
    with track_steps(f"converting to {to}", total=None) as advance:
        report = run(
            resolve_model(source),
            target,
            to=cast("Literal['hf', 'meta', 'gguf']", to),
            shards=shards,
            fp8=fp8,
            dtype=dtype,
            quantisation=quantisation.upper(),
            overwrite=overwrite,
            progress=lambda done, total, name: advance(done, f"of {total} {name}"),
        )
    for remark in report.notes:
        note(f"note: {remark}")
    data: dict[str, Any] = {
        "path": str(report.path),
        "num_tensors": report.num_tensors,
        "size_bytes": report.size_bytes,
        "seconds": report.seconds,
    }
    if json:
        print_json({**data, "notes": list(report.notes)})
        return
    note(f"wrote {report.num_tensors} tensors, {gib(report.size_bytes)}, to {report.path} in {report.seconds:.1f} s")


def verify(
    model: Annotated[str, typer.Argument(help="A model: path, hub name or alias.")],
    json: JsonOption = False,
) -> None:
    """Check a checkpoint: structure, shapes, missing and unexpected tensors, hashes, values that are not finite.

    Exit code 5 if there is a problem.
    """
    from herd.base.errors import GateError
    from herd.base.memory import gib
    from herd.checkpoint.resolve import resolve_model
    from herd.checkpoint.verify import verify as run
    from herd.cli.output import facts, line, print_json

    report = run(resolve_model(model))
    if json:
        print_json(report.to_dict())
    else:
        facts(
            {
                "path": str(report.path),
                "format": report.format,
                "tensors": f"{report.num_tensors:,}",
                "parameters": f"{report.num_parameters:,}",
                "size": gib(report.size_bytes),
                "dtypes": ", ".join(f"{kind} x {count}" for kind, count in report.dtypes.items()),
            }
        )
        for name, digest in report.sha256.items():
            line(f"sha256  {digest}  {name}")
        for problem in report.problems:
            line(f"{problem.kind}: {problem.name}: {problem.message}")
    if report.problems:
        raise GateError(f"{report.path} has {len(report.problems)} problem(s)", hint="fetch or convert it again; the list is above")
    if not json:
        line("no problems")
