"""`herd bench`: how fast a model is on this machine, and how a server holds up under load."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING, Annotated, Any

import typer

from herd.base import settings
from herd.cli.load import DeviceOption, DtypeOption, JsonOption, ThreadsOption

if TYPE_CHECKING:
    from herd.bench.engine import Subject
    from herd.bench.report import Load

app = typer.Typer(help="How fast a model is here, and how a server holds up under load.", no_args_is_help=True)

ModelArgument = Annotated[str | None, typer.Argument(help="Path, hub name or alias. [variable: HERD_MODEL; default: cria]")]
PromptOption = Annotated[int, typer.Option(help="Tokens of a prompt.")]
AnswerOption = Annotated[int, typer.Option(help="Tokens of an answer.")]
RequestsOption = Annotated[int, typer.Option(help="How many requests.")]
MixOption = Annotated[str, typer.Option(help="Lengths: fixed, uniform, chat (as people's conversations) or shared (a common beginning).")]
RateOption = Annotated[float | None, typer.Option(help="Requests a second, by a Poisson process. [default: all at once]")]
ConcurrencyOption = Annotated[int | None, typer.Option(help="Requests in flight at most.")]
SeedOption = Annotated[int, typer.Option(help="The same seed makes the same requests.")]


@app.command("latency")
def latency(
    model: ModelArgument = None,
    prompt_tokens: PromptOption = 128,
    new_tokens: AnswerOption = 64,
    batch: Annotated[int, typer.Option(help="Requests at once.")] = 1,
    repeats: Annotated[int, typer.Option(help="Rounds that count; one before them warms up.")] = 5,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    threads: ThreadsOption = None,
    json: JsonOption = False,
) -> None:
    """Time to the first token and between tokens, and what share that is of what this machine reads and computes at best."""
    from herd.bench.engine import measure_latency
    from herd.bench.report import HEADER
    from herd.cli.output import facts, line, print_json, table

    subject, about = _subject(model, prompt_tokens + new_tokens, batch, device, dtype, threads)
    try:
        found = measure_latency(subject, batch=batch, num_prompt=prompt_tokens, num_answer=new_tokens, repeats=repeats)
    finally:
        subject.engine.close()
    if json:
        print_json({**about, **found.to_dict()})
        return
    rows = [["time to first token", *found.first_token.milliseconds()], ["between tokens", *found.between_tokens.milliseconds()]]
    table(rows, HEADER)
    line()
    facts(
        {
            "reading": f"{found.prompt_tokens_per_s:,.1f} tokens/s, {found.matmul_share:.0%} of {found.matmul_tflop_per_s:.2f} TFLOP/s",
            "writing": f"{found.output_tokens_per_s:,.1f} tokens/s, {found.read_share:.0%} of {found.read_gb_per_s:.1f} GB/s",
        }
    )


@app.command("throughput")
def throughput(
    model: ModelArgument = None,
    requests: RequestsOption = 64,
    prompt_tokens: PromptOption = 128,
    new_tokens: AnswerOption = 64,
    mix: MixOption = "fixed",
    rate: RateOption = None,
    concurrency: ConcurrencyOption = None,
    max_sequences: Annotated[int, typer.Option(help="Sequences that are written at once.")] = 64,
    prefix_cache: Annotated[bool, typer.Option(help="Take what is cached of a prompt.")] = True,
    seed: SeedOption = 0,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    threads: ThreadsOption = None,
    json: JsonOption = False,
) -> None:
    """Tokens a second of many requests on one engine, without a server around it."""
    from herd.bench.engine import run_load
    from herd.bench.workload import as_mix, make_items

    items = make_items(requests, num_prompt=prompt_tokens, num_answer=new_tokens, mix=as_mix(mix), rate=rate, seed=seed)
    longest = max(item.num_prompt + item.num_answer for item in items)
    subject, about = _subject(model, longest, max_sequences, device, dtype, threads)
    try:
        found = run_load(
            subject.engine,
            items,
            vocab_size=subject.num_text_ids,
            mix=as_mix(mix),
            reuse=prefix_cache,
            concurrency=concurrency,
        )
    finally:
        subject.engine.close()
    _print(found, {**about, "mix": mix, "rate": rate, "concurrency": concurrency}, as_json=json)


@app.command("serve")
def serve(
    url: Annotated[str, typer.Option(help="The server's address, with /v1.")] = "http://127.0.0.1:8321/v1",
    model: Annotated[str | None, typer.Option("--model", "-m", help="The model's name. [default: the first that the server lists]")] = None,
    api_key: Annotated[str | None, typer.Option(help="A key of the server.", envvar="HERD_API_KEY", show_envvar=True)] = None,
    requests: RequestsOption = 100,
    prompt_tokens: PromptOption = 128,
    new_tokens: AnswerOption = 64,
    mix: MixOption = "chat",
    rate: RateOption = None,
    concurrency: ConcurrencyOption = None,
    ignore_eos: Annotated[
        bool, typer.Option(help="Write every answer to its full length; servers that do not know the field refuse it.")
    ] = True,
    seed: SeedOption = 0,
    json: JsonOption = False,
) -> None:
    """Load on a running server of OpenAI's API, herd's or another: times, tokens a second, and what failed. Exit code 1 if anything did."""
    from herd.bench.http import Target, first_model, measure_server
    from herd.bench.workload import as_mix, make_items

    items = make_items(requests, num_prompt=prompt_tokens, num_answer=new_tokens, mix=as_mix(mix), rate=rate, seed=seed)
    target = Target(url=url, model=model or first_model(url, api_key), key=api_key, ignore_eos=ignore_eos)
    found = measure_server(target, items, mix=as_mix(mix), concurrency=concurrency)
    _print(found, {"url": url, "model": target.model, "mix": mix, "rate": rate, "concurrency": concurrency}, as_json=json)
    if found.num_failed:
        raise typer.Exit(1)


def _subject(
    model: str | None, context: int, max_sequences: int, device: str | None, dtype: str | None, threads: int | None
) -> tuple[Subject, dict[str, Any]]:
    """A threaded engine with room for what is measured."""
    from herd.bench.engine import Subject
    from herd.checkpoint.resolve import load_checkpoint_tokenizer, resolve_model
    from herd.cli.fits import check_fits
    from herd.cli.load import choose_device, set_threads
    from herd.engine.build import build_engine
    from herd.engine.memory import EngineConfig
    from herd.engine.packed.cache import load_for_engine
    from herd.kernels.dispatch import set_num_threads

    count = set_threads(threads)
    if count:
        set_num_threads(count)
    name, kind = settings.value("model", model), settings.value("dtype", dtype)
    place = choose_device(settings.value("device", device))
    path = resolve_model(name)
    check_fits(path, dtype=None if kind == "auto" else kind, device=place)
    loaded = load_for_engine(path, dtype=None if kind == "auto" else kind, device=place)
    tokenizer = load_checkpoint_tokenizer(path)
    config = EngineConfig(context=min(context, loaded.config.max_position_embeddings), max_sequences=max_sequences)
    engine = build_engine(loaded, config, vocab_size=tokenizer.vocab_size, threaded=True)
    gc.freeze()  # as the server's engine process does
    about = {"model": name, "parameters": loaded.config.num_parameters, "dtype": str(loaded.dtype).removeprefix("torch."), "device": place}
    subject = Subject(engine=engine, config=loaded.config, dtype=loaded.dtype, device=loaded.device, num_text_ids=tokenizer.num_base)
    return subject, about


def _print(found: Load, about: dict[str, Any], *, as_json: bool) -> None:
    from herd.bench.report import HEADER
    from herd.cli.output import facts, line, note, print_json, table

    data = found.to_dict()
    if as_json:
        print_json({**about, **data})
        return
    table(found.rows(), HEADER)
    line()
    facts(
        {
            "requests": f"{found.num_requests:,} in {found.seconds:,.2f} s, {data['requests_per_s']:,.2f} a second",
            "writing": f"{data['output_tokens_per_s']:,.1f} tokens/s",
            "reading": f"{data['prompt_tokens_per_s']:,.1f} tokens/s; {found.cached_tokens:,} of {found.prompt_tokens:,} were cached",
        }
    )
    if found.num_failed:
        note(f"{found.num_failed:,} failed: " + "; ".join(found.errors))
