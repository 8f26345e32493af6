"""`herd run`: one prompt, one answer. Others script against it: flags and JSON are a contract."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from herd.base import settings
from herd.cli.load import (
    DeviceOption,
    DtypeOption,
    JsonOption,
    MaxTokensOption,
    ModelOption,
    PpOption,
    SeedOption,
    TemperatureOption,
    ThreadsOption,
    TopPOption,
    TpOption,
    load_llm,
)

if TYPE_CHECKING:
    from herd.inference.params import SamplingParams
    from herd.inference.port import Inference


def run(
    prompt: Annotated[str | None, typer.Argument(help="The prompt. - or none reads it from stdin.")] = None,
    model: ModelOption = None,
    raw: Annotated[bool, typer.Option("--raw", help="Go on with the prompt as plain text instead of answering it.")] = False,
    system: Annotated[str | None, typer.Option(help="Instructions before the prompt (not with --raw).")] = None,
    temperature: TemperatureOption = None,
    top_p: TopPOption = None,
    top_k: Annotated[int, typer.Option(help="Keep this many of the likeliest tokens; 0 is off.")] = 0,
    min_p: Annotated[float, typer.Option(help="Drop tokens below this share of the likeliest; 0 is off.")] = 0.0,
    max_tokens: MaxTokensOption = None,
    seed: SeedOption = None,
    stop: Annotated[list[str] | None, typer.Option(help="Text that ends the answer; may be given several times.")] = None,
    base_url: Annotated[
        str | None, typer.Option(help="Ask an OpenAI-compatible server, as http://HOST/v1, for --model; the key is HERD_API_KEY's.")
    ] = None,
    json: JsonOption = False,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    threads: ThreadsOption = None,
    tp: TpOption = 1,
    pp: PpOption = 1,
) -> None:
    """Answer one prompt, or with --raw go on with it as plain text. The answer streams to stdout.

    With --json it is printed when it is whole: text, token_ids, finish_reason, usage and timings.
    """
    from herd.base.errors import UsageError
    from herd.cli.stdin import argument_or_stdin, utf8
    from herd.inference.params import SamplingParams

    text = argument_or_stdin(prompt, "prompt", example='herd run "Why is the sky blue?"', chomp=not raw)
    if raw and system is not None:
        raise UsageError("--system has no place in a raw completion", hint="leave out --raw or --system")
    utf8(system or "", "text of --system")
    utf8("".join(stop or ()), "text of --stop")
    params = SamplingParams(
        temperature=settings.value("temperature", temperature),
        top_p=settings.value("top_p", top_p),
        top_k=top_k,
        min_p=min_p,
        max_tokens=settings.value("max_tokens", max_tokens),
        seed=seed,
        stop=tuple(stop or ()),
    )
    if base_url is not None:
        from herd.cli.remote_chat import open_remote

        with open_remote(base_url, settings.value("model", model)) as there:
            _answer(there, text, params, raw=raw, system=system, as_json=json)
        return
    llm = load_llm(model, device=device, dtype=dtype, threads=threads, tp=tp, pp=pp)
    _answer(llm.inference, text, params, raw=raw, system=system, as_json=json)


def _answer(model: Inference, text: str, params: SamplingParams, *, raw: bool, system: str | None, as_json: bool) -> None:
    """Stream the answer, or print it as JSON when it is whole."""
    from herd.cli.output import line, print_json, write
    from herd.inference.port import ChatRequest, CompletionRequest, Finished, to_dict
    from herd.text.messages import Message
    from herd.text.reply import TextDelta

    if raw:
        events = model.complete(CompletionRequest(prompt=text, params=params))
    else:
        messages = (*((Message.system(system),) if system is not None else ()), Message.user(text))
        events = model.chat(ChatRequest(messages=messages, params=params))
    for event in events:
        if isinstance(event, TextDelta) and not as_json:
            write(event.text)
        elif isinstance(event, Finished) and as_json:
            print_json(to_dict(event))
    if not as_json:
        line()
