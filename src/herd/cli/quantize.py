"""`herd quantize`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from herd.cli.load import JsonOption, ThreadsOption

if TYPE_CHECKING:
    from torch import Tensor

    from herd.model.config import ModelConfig
    from herd.quant.schemes import Settings, Size
    from herd.quant.stream import Written

DATA_HELP = "Text: .txt, .md, .jsonl with a text field, also .gz or .zst."
_Length = Annotated[int, typer.Option("--calib-length", help="Tokens of a sequence of calibration.")]


def quantize(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A model: path, hub name or alias; with --dry-run a shape too, as 405b.")],
    target: Annotated[Path | None, typer.Argument(metavar="DST", help="The folder to write; a .gguf file with --format gguf.")] = None,
    scheme: Annotated[str, typer.Option(help="fp8, fp8-meta, int8, w8a8, int4 or auto.")] = "int8",
    calib: Annotated[Path | None, typer.Option(help=DATA_HELP)] = None,
    method: Annotated[
        str | None, typer.Option(help="rtn, gptq, awq or smooth. [default: rtn; with --calib gptq for 4 bits, smooth for w8a8]")
    ] = None,
    group: Annotated[int, typer.Option(help="int4, auto: inputs that share a scale: 32, 64 or 128.")] = 128,
    asymmetric: Annotated[bool, typer.Option("--asymmetric", help="int4, auto: a zero point for each group.")] = False,
    act_order: Annotated[
        bool, typer.Option("--act-order/--no-act-order", help="gptq: round the columns of the largest inputs first.")
    ] = True,
    rotate: Annotated[bool, typer.Option("--rotate", help="Spread outliers by Hadamard rotations first; unties a tied head.")] = False,
    head: Annotated[bool, typer.Option("--head", help="Quantise the output matrix too, where it is not the embedding.")] = False,
    kv_cache: Annotated[
        str, typer.Option("--kv-cache", help="int8 or fp8: store scales of such a cache too, for vLLM and SGLang; needs --calib.")
    ] = "",
    budget: Annotated[str | None, typer.Option(help="auto: bits a weight, scales included, as 4.5bpw. [default: 4.5bpw]")] = None,
    to_format: Annotated[str, typer.Option("--format", help="hf, or gguf: int8 as Q8_0, int4 as Q4_K, with --group 32 as Q4_0.")] = "hf",
    calib_samples: Annotated[int, typer.Option("--calib-samples", help="Sequences of calibration at most.")] = 64,
    calib_length: _Length = 512,
    seed: Annotated[int, typer.Option(help="rotate: the signs of the rotation.")] = 0,
    report: Annotated[Path | None, typer.Option(help="Compare with the original and write the page here; needs --eval.")] = None,
    eval_data: Annotated[Path | None, typer.Option("--eval", help="Held-out text for --report.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the sizes from the config alone.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is at DST.")] = False,
    threads: ThreadsOption = None,
    json: JsonOption = False,
) -> None:
    """Quantise a model to 8 or 4 bits, layer by layer; a run that was killed goes on where it was."""
    from herd.base.errors import UsageError
    from herd.cli.load import set_threads
    from herd.quant.budget import budget_bits
    from herd.quant.schemes import Settings

    if (report is None) != (eval_data is None):
        raise UsageError("--report and --eval go together", hint="give held-out text with --eval FILE and a page with --report PAGE.html")
    settings = Settings(
        scheme=scheme,
        method=method or _default_method(scheme, calib is not None),
        group=group,
        symmetric=not asymmetric,
        act_order=act_order,
        rotate=rotate,
        head=head,
        budget_bits=budget_bits(budget) if budget else None,
        seed=seed,
        kv_cache=kv_cache,
    )
    if dry_run:
        _dry_run(model, settings, json=json)
        return
    if target is None:
        raise UsageError("there is no destination", hint="herd quantize MODEL DST, or --dry-run for the sizes alone")
    set_threads(threads)
    if to_format != "hf":
        _to_gguf(model, target, settings, to_format, overwrite=overwrite, json=json)
        return
    written, data = _to_folder(model, target, settings, calib, calib_samples, calib_length, overwrite=overwrite)
    if report is not None and eval_data is not None:
        from herd.cli.quality import compare_models

        data["quality"] = compare_models(model, str(target), eval_data, calib_samples, calib_length, report)[1]
    _tell(written, data, json=json)


def _default_method(scheme: str, calibrated: bool) -> str:
    by_scheme = {"int4": "gptq", "auto": "gptq", "w8a8": "smooth"}
    return by_scheme.get(scheme, "rtn") if calibrated else "rtn"


def _to_folder(
    model: str, target: Path, settings: Settings, calib: Path | None, samples: int, length: int, *, overwrite: bool
) -> tuple[Written, dict[str, Any]]:
    from herd.base.errors import UsageError
    from herd.base.progress import track_steps
    from herd.checkpoint.resolve import resolve_model
    from herd.quant.run import quantise_checkpoint

    path = resolve_model(model)
    if settings.needs_calibration and calib is None:
        what = f"a cache of {settings.kv_cache}" if settings.kv_cache else settings.scheme
        otherwise = "leave --kv-cache out" if settings.kv_cache else "choose --scheme int8"
        raise UsageError(f"{what} needs text to calibrate on", hint=f"give --calib FILE, or {otherwise}")
    tokens = None if calib is None or not settings.needs_calibration else text_tokens(path, calib, samples, length)
    with track_steps(f"quantising to {settings.scheme}", total=None) as advance:
        written = quantise_checkpoint(
            path,
            target,
            settings,
            tokens_BT=tokens,
            overwrite=overwrite,
            progress=lambda done, total, name: advance(done, f"of {total} {name}"),
        )
    return written, _size_data(written.size) | {"path": str(target), "scheme": settings.scheme, "method": settings.method}


def text_tokens(model: Path, data: Path, num: int, length: int) -> Tensor:
    """Text as sequences of one length, record after record."""
    from herd.base.errors import UsageError
    from herd.checkpoint.resolve import load_checkpoint_tokenizer
    from herd.data.records import read_records
    from herd.quant.run import as_sequences

    if num < 1 or length < 2:
        raise UsageError(f"{num} sequences of {length} tokens are nothing to look at", hint="give at least 1 sequence of 2 tokens")
    tokenizer = load_checkpoint_tokenizer(model)
    ids: list[int] = []
    for record in read_records(data):
        text = record.get("text")
        if not isinstance(text, str):
            raise UsageError(f"{data} has a record without text", hint="give .txt, or .jsonl whose lines have a text field")
        ids += tokenizer.encode(text)
        if len(ids) >= num * length:
            break
    return as_sequences(ids, num=num, length=length)


def _size_data(size: Size) -> dict[str, Any]:
    return {
        "size_bytes": size.total_bytes,
        "quantised_bytes": size.quantised_bytes,
        "scale_bytes": size.scale_bytes,
        "num_quantised": size.num_quantised,
        "bits_per_weight": round(size.bits_per_weight, 4),
    }


def _tell(written: Written, data: dict[str, Any], *, json: bool) -> None:
    from herd.base.memory import gib
    from herd.cli.output import facts, note, print_json
    from herd.cli.quality import quality_facts

    for remark in written.notes:
        note(f"note: {remark}")
    if written.resumed:
        note(f"note: went on behind {written.resumed} layers of an earlier run")
    if json:
        matrices = [
            {"name": name, "scheme": scheme.label, "relative_error": written.errors[name]} for name, scheme in written.schemes.items()
        ]
        print_json({**data, "resumed_layers": written.resumed, "matrices": matrices})
        return
    errors = list(written.errors.values())
    told = {
        "wrote": str(written.path),
        "size": gib(written.size.total_bytes),
        "bits a weight": f"{written.size.bits_per_weight:.3f} in the blocks' matrices",
        "matrices": f"{len(errors)}, mean relative error {sum(errors) / len(errors):.4f}, largest {max(errors):.4f}",
    }
    facts(told | (quality_facts(data["quality"]) if "quality" in data else {}))


def _config_of(model: str) -> tuple[ModelConfig, int]:
    """A model's config and the bytes of its numbers, from its files, or by a shape's name."""
    from herd.base.errors import NotFoundError
    from herd.plan.models import find_shape, preset_name

    if preset_name(model) is not None:
        return find_shape(model)[1], 2
    from herd.checkpoint.hf import main_dtype
    from herd.checkpoint.open import open_checkpoint
    from herd.checkpoint.resolve import resolve_model

    try:
        path = resolve_model(model)
    except NotFoundError as error:
        raise NotFoundError(error.message, hint="give a model, or a shape as 8b, 70b or 405b") from error
    with open_checkpoint(path) as source:
        return source.config, main_dtype(source).itemsize


def _dry_run(model: str, settings: Settings, *, json: bool) -> None:
    from dataclasses import replace

    from herd.cli.output import facts, print_json
    from herd.quant.mixture import DEFAULT_BITS
    from herd.quant.schemes import schemes_for, size_of

    config, width = _config_of(model)
    if settings.rotate:
        config = replace(config, tie_word_embeddings=False)
    schemes = schemes_for(config, settings)
    size, before = size_of(config, schemes, dtype_bytes=width, kv_cache=bool(settings.kv_cache)), size_of(config, {}, dtype_bytes=width)
    data = {"model": model, "scheme": settings.scheme, "original_bytes": before.total_bytes, **_size_data(size)}
    if settings.scheme == "auto":
        # What the budget lets the blocks take; the mix itself needs calibration.
        bits = settings.budget_bits or DEFAULT_BITS
        blocks = config.num_hidden_layers * (config.num_parameters_attention + config.num_parameters_ffn)
        extra = int(blocks * (bits - size.bits_per_weight) / 8)
        data |= {"size_bytes": size.total_bytes + extra, "bits_per_weight": bits}
    if json:
        print_json(data)
        return
    gb = 1e9
    facts(
        {
            "model": f"{model}, {config.num_parameters:,} parameters",
            "original": f"{before.total_bytes / gb:,.2f} GB",
            settings.scheme: f"{data['size_bytes'] / gb:,.2f} GB, {data['size_bytes'] / before.total_bytes:.1%}",
            "quantised": f"{size.num_quantised:,} values in {size.quantised_bytes / gb:,.2f} GB, scales {size.scale_bytes / gb:,.3f} GB",
            "bits a weight": f"{data['bits_per_weight']:.3f} in the blocks' matrices",
        }
    )


def _to_gguf(model: str, target: Path, settings: Settings, to_format: str, *, overwrite: bool, json: bool) -> None:
    from herd.base.errors import UsageError, did_you_mean
    from herd.base.memory import gib
    from herd.base.progress import track_steps
    from herd.checkpoint.convert import convert
    from herd.checkpoint.resolve import resolve_model
    from herd.cli.output import note, print_json

    if to_format != "gguf":
        raise UsageError(f"unknown format {to_format!r}", hint=did_you_mean(to_format, ("hf", "gguf"), otherwise="formats: hf, gguf"))
    kinds = {"int8": "Q8_0", "int4": "Q4_0" if settings.group == 32 else "Q4_K"}
    if settings.scheme not in kinds or settings.method != "rtn" or settings.rotate or settings.kv_cache:
        raise UsageError(
            f"GGUF holds no {settings.scheme} by {settings.method}{' and rotation' if settings.rotate else ''}",
            hint="GGUF takes --scheme int8 or int4 with --method rtn; `herd convert -q Q6_K` writes 6 bits",
        )
    with track_steps("quantising to gguf", total=None) as advance:
        written = convert(
            resolve_model(model),
            target,
            to="gguf",
            quantisation=kinds[settings.scheme],
            overwrite=overwrite,
            progress=lambda done, total, name: advance(done, f"of {total} {name}"),
        )
    for remark in written.notes:
        note(f"note: {remark}")
    data = {"path": str(target), "scheme": settings.scheme, "kind": kinds[settings.scheme], "size_bytes": written.size_bytes}
    if json:
        print_json(data)
        return
    note(f"wrote {target} as {data['kind']}, {gib(written.size_bytes)}")
