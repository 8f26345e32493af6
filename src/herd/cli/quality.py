"""`herd quality`: a quantised model beside its original."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from herd.cli.load import JsonOption, ThreadsOption
from herd.cli.quantize import DATA_HELP, text_tokens

if TYPE_CHECKING:
    from herd.quant.quality import Quality


def quality(
    original: Annotated[str, typer.Argument(metavar="ORIGINAL", help="The model before: path, hub name or alias.")],
    quantised: Annotated[str, typer.Argument(metavar="QUANTISED", help="The model after; any format.")],
    data: Annotated[Path, typer.Option("--data", help=f"Held-out text. {DATA_HELP}")],
    report: Annotated[Path | None, typer.Option(help="Write a page with the figures and the plots here.")] = None,
    samples: Annotated[int, typer.Option("--samples", help="Sequences of text at most.")] = 64,
    length: Annotated[int, typer.Option("--length", help="Tokens of a sequence.")] = 512,
    max_kl: Annotated[float | None, typer.Option("--max-kl", help="Fail with exit code 5 above this mean divergence.")] = None,
    tool_calls: Annotated[
        Path | None, typer.Option("--tool-calls", help="Chats with tools and calls (JSONL): are they still made?")
    ] = None,
    maths: Annotated[Path | None, typer.Option("--maths", help="Problems with answers (JSONL): is the last number still right?")] = None,
    questions: Annotated[int, typer.Option("--questions", min=1, help="Questions of each set at most.")] = 100,
    answer_tokens: Annotated[
        int | None, typer.Option("--answer-tokens", min=1, help="Tokens of an answer at most. [default: 256 for calls, 512 for maths]")
    ] = None,
    min_recovery: Annotated[
        float | None, typer.Option("--min-recovery", help="Fail with exit code 5 below this share of the right answers, as 0.95.")
    ] = None,
    threads: ThreadsOption = None,
    json: JsonOption = False,
) -> None:
    """Compare a quantised model with its original: perplexity, divergence, same likeliest token, calls, maths, bytes, drift by layer."""
    from herd.base.errors import GateError, UsageError
    from herd.cli.load import set_threads
    from herd.cli.output import facts, print_json

    sets = {"tools": tool_calls, "maths": maths}
    if min_recovery is not None and not any(sets.values()):
        raise UsageError("--min-recovery needs questions", hint="give --tool-calls FILE or --maths FILE")
    set_threads(threads)
    found = [
        _recovery(original, quantised, kind, path, questions, answer_tokens) for kind, path in sets.items() if path is not None
    ]  # fmt: skip
    figures, told = compare_models(original, quantised, data, samples, length, report, found)
    if json:
        print_json(told)
    else:
        facts(quality_facts(told))
    if max_kl is not None and figures.mean_kl > max_kl:
        raise GateError(
            f"the mean divergence is {figures.mean_kl:.5f}, over {max_kl:g}", hint="quantise to more bits, or calibrate with gptq or awq"
        )
    for one in found if min_recovery is not None else []:
        if one["recovery"] is not None and one["recovery"] < min_recovery:
            raise GateError(
                f"of the set {one['kind']} {one['recovery']:.1%} is left, under {min_recovery:.1%}",
                hint="quantise to more bits, calibrate with gptq, or recover with `herd train qat`",
            )


def _recovery(original: str, quantised: str, kind: str, path: Path, limit: int, tokens: int | None) -> dict[str, Any]:
    """Ask both models, one after the other, so that one of them is in memory at a time."""
    from dataclasses import asdict

    from herd.base.progress import track_steps
    from herd.inference.llm import LLM
    from herd.recipes import answer_sets

    known: answer_sets.Kind = "tools" if kind == "tools" else "maths"
    asked = answer_sets.read_questions(path, known, limit)
    answers: list[list[object]] = []
    for name in (original, quantised):
        llm = LLM(name)
        try:
            with track_steps(f"{kind}: {Path(name).name}", total=len(asked)) as advance:
                most = tokens or answer_sets.NEW_TOKENS[known]
                answers.append(answer_sets.ask(llm, asked, known, max_tokens=most, advance=lambda done, advance=advance: advance(done, "")))
        finally:
            llm.close()
    judged = answer_sets.recovery_of(known, asked, *answers)
    return {**asdict(judged), "recovery": judged.recovery, "data": str(path)}


def compare_models(
    original: str, quantised: str, data: Path, samples: int, length: int, report: Path | None, sets: list[dict[str, Any]] | None = None
) -> tuple[Quality, dict[str, Any]]:
    """The figures, and all that is told of both models; with `report` a page too. `sets` are the answers to questions."""
    from dataclasses import asdict

    from herd.base.progress import track_steps
    from herd.checkpoint.json_file import read_json_object
    from herd.checkpoint.load import load_model
    from herd.checkpoint.resolve import resolve_model
    from herd.quant.page import write_page
    from herd.quant.quality import compare
    from herd.quant.stream import RECORD_FILE

    first, second = resolve_model(original), resolve_model(quantised)
    tokens = text_tokens(first, data, samples, length)
    with track_steps("comparing", total=len(tokens)) as advance:
        one, two = load_model(first, dtype="float32"), load_model(second, dtype="float32")
        figures = compare(one, two, tokens, lambda done, total, _: advance(done, f"of {total} sequences"))
    told = {
        **asdict(figures),
        "perplexity_change": figures.perplexity_change,
        "original_bytes": _weights_bytes(first),
        "size_bytes": _weights_bytes(second),
        "sets": sets or [],
    }
    if report is not None:
        record = read_json_object(second / RECORD_FILE) if (second / RECORD_FILE).is_file() else None
        write_page(report, title=f"{second.name} beside {first.name}", facts=quality_facts(told), drift=figures.drift, record=record)
    return figures, told


def _weights_bytes(path: Path) -> int:
    from herd.checkpoint.open import open_checkpoint

    with open_checkpoint(path) as source:
        return sum(info.size_bytes for info in source.tensors.values())


def quality_facts(told: Mapping[str, Any]) -> dict[str, str]:
    """What is told, in words."""
    from herd.base.memory import gib

    names = {"tools": "tool calls", "maths": "maths"}
    sets = {
        names[one["kind"]]: f"{one['original']:.1%} right before, {one['quantised']:.1%} after"
        + (f" ({one['recovery']:.1%} recovered)" if one["recovery"] is not None else "")
        + f", the same answer to {one['same']:.1%} of {one['num_questions']:,}"
        + (f"; {one['num_too_long']:,} too long for the context" if one["num_too_long"] else "")
        for one in told["sets"]
    }
    return {
        "text": f"{told['num_tokens']:,} tokens",
        "perplexity": f"{told['perplexity_original']:.4f} before, {told['perplexity']:.4f} after ({told['perplexity_change']:+.2%})",
        "mean KL": f"{told['mean_kl']:.6f}, one token in a hundred over {told['p99_kl']:.5f}",
        "same top": f"{told['same_top']:.2%} of tokens",
        "weights": f"{gib(told['original_bytes'])} before, {gib(told['size_bytes'])} after",
        "scoring": f"{told['tokens_per_s_original']:,.0f} tokens/s before, {told['tokens_per_s']:,.0f} after, in float32",
        **sets,
    }
