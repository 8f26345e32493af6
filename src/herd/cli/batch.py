"""`herd batch`: a file of requests in, a file of answers out. Repeat the command after an interruption to go on."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from herd.base import settings
from herd.cli.load import (
    DeviceOption,
    DtypeOption,
    JsonOption,
    MaxTokensOption,
    ModelOption,
    TemperatureOption,
    ThreadsOption,
    TopPOption,
    load_llm,
)


def batch(
    input_: Annotated[Path, typer.Argument(metavar="INPUT", help="Requests, one JSON object a line, with messages or a prompt.")],
    output: Annotated[Path, typer.Argument(help="Answers, one JSON object a line, in the order of their coming.")],
    model: ModelOption = None,
    temperature: TemperatureOption = None,
    top_p: TopPOption = None,
    max_tokens: MaxTokensOption = None,
    json: JsonOption = False,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    threads: ThreadsOption = None,
) -> None:
    """Answer a file of requests, many at once. Interrupt and repeat the command to go on; finished lines are kept.

    The options count where a line leaves them open. A line that cannot be answered gets its error in place of an answer.
    """
    from herd.base.errors import NotFoundError
    from herd.cli.output import note, print_json
    from herd.inference.params import SamplingParams

    if not input_.is_file():
        raise NotFoundError(f"there is no file {input_}", hint="give a file with one JSON object a line")
    params = SamplingParams(
        temperature=settings.value("temperature", temperature),
        top_p=settings.value("top_p", top_p),
        max_tokens=settings.value("max_tokens", max_tokens),
    )
    llm = load_llm(model, device=device, dtype=dtype, threads=threads)
    try:
        report = llm.run_file(input_, output, params)
    except KeyboardInterrupt:
        note(f"\nstopped; the same command goes on with what {output} has no answer for")
        raise
    if json:
        print_json(asdict(report))
        return
    before = f", {report.num_before:,} were there before" if report.num_before else ""
    note(f"done: {report.num_answered:,} answers and {report.num_failed:,} errors in {output}{before}")
