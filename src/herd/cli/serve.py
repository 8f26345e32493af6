"""`herd serve`: OpenAI's API over a model. `stack.server` is the server; here are its settings, and what it says at start."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from herd.base import settings
from herd.cli.load import DeviceOption, DtypeOption, PpOption, ThreadsOption, TpOption

if TYPE_CHECKING:
    from herd.stack.config import ServerConfig
    from herd.stack.engine_process import EngineSpec
    from herd.text.tool_calls import ToolStyle

MemoryOption = Annotated[str | None, typer.Option(help="What everything together may take, such as 16GiB. [default: what is needed]")]
ContextOption = Annotated[int | None, typer.Option(help="Tokens of a prompt and its answer together. [default: the model's]")]
SequencesOption = Annotated[int, typer.Option(help="Sequences that are written at once.")]
BudgetOption = Annotated[int, typer.Option(help="Tokens computed in one step at most.")]
CacheOption = Annotated[
    str | None, typer.Option(help="dtype of cached keys and values, such as bfloat16, int8 or fp8. [default: the weights']")
]
PrefixDirOption = Annotated[
    Path | None, typer.Option(help="Folder in which prompts' keys and values outlive a restart; whoever reads it learns the prompts.")
]
PrefixSizeOption = Annotated[str, typer.Option(help="What the files in --prefix-dir may take.")]
DraftOption = Annotated[
    str | None,
    typer.Option(help="What guesses tokens to be verified at once: ngram (prompt lookup) or a smaller model. Answers stay the same."),
]
NumDraftOption = Annotated[int, typer.Option(help="Tokens guessed at once. [default: 4 with --draft]", show_default=False)]


ShieldsOption = Annotated[
    str | None,
    typer.Option(
        help="Shields around every answer, with commas, each NAME or NAME=THRESHOLD: harm, injection, code-shield, secrets, pii. "
        "[variable: HERD_SHIELDS; default: harm=0.9,injection=0.8]"
    ),
]


def serve(
    model: Annotated[str | None, typer.Argument(help="Path, hub name or alias. [variable: HERD_MODEL; default: cria]")] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on. [variable: HERD_HOST; default: 127.0.0.1]")] = None,
    port: Annotated[int | None, typer.Option(help="Port; 0 takes any free one. [variable: HERD_PORT; default: 8321]")] = None,
    name: Annotated[str | None, typer.Option(help="What clients call the model. [default: MODEL as given]")] = None,
    api_key_file: Annotated[
        Path | None, typer.Option(help="Keys, one a line: [NAME] KEY [rpm=] [tpm=] [concurrent=] [priority=] [admin=].")
    ] = None,
    state_dir: Annotated[Path | None, typer.Option(help="Where files and batches are kept. [default: server in herd's home]")] = None,
    database: Annotated[
        str | None,
        typer.Option(help="URL of a PostgreSQL database. [variable: HERD_DATABASE; default: a file of the state directory]"),
    ] = None,
    files: Annotated[
        str | None, typer.Option(help="Folder or fsspec URL of files. [variable: HERD_FILES; default: in the state directory]")
    ] = None,
    runs: Annotated[Path, typer.Option(help="Folder of training runs whose curves the page shows.")] = Path("runs"),
    memory: MemoryOption = None,
    context: ContextOption = None,
    max_sequences: SequencesOption = 64,
    token_budget: BudgetOption = 512,
    kv_dtype: CacheOption = None,
    draft: DraftOption = None,
    num_draft: NumDraftOption = 0,
    prefix_dir: PrefixDirOption = None,
    prefix_dir_size: PrefixSizeOption = "4GiB",
    ttft_target: Annotated[float, typer.Option(help="Seconds to the first token that are promised; else 429.")] = 60.0,
    max_waiting: Annotated[int, typer.Option(help="Requests in flight at most.")] = 4096,
    drain: Annotated[float, typer.Option(help="Seconds that requests have to end after SIGTERM.")] = 30.0,
    engine_timeout: Annotated[float, typer.Option(help="Seconds of one step after which the engine is started anew.")] = 120.0,
    allow_host: Annotated[list[str] | None, typer.Option(help="A name that a Host header may hold; several times.")] = None,
    allow_origin: Annotated[list[str] | None, typer.Option(help="A web page that may ask, as https://HOST; several times.")] = None,
    shields: ShieldsOption = None,
    no_shields: Annotated[bool, typer.Option("--no-shields", help="Judge nothing that comes in or goes out.")] = False,
    allow_mcp: Annotated[
        list[str] | None, typer.Option(help="A private network, as 127.0.0.0/8, whose MCP servers clients may register; several times.")
    ] = None,
    tool_style: Annotated[
        str, typer.Option(help="How tools are described to the model and called: json, function or python_list (Llama 3.2).")
    ] = "json",
    access_log: Annotated[bool, typer.Option(help="Log every request, never its content.")] = True,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    threads: ThreadsOption = None,
    tp: TpOption = 1,
    pp: PpOption = 1,
) -> None:
    """Serve a model over OpenAI's API and the Llama Stack's, with shields around it, tools beside it, and the providers of herd.toml.

    Without keys it listens on this machine alone. `herd keys new` makes a key.
    """
    from herd.base.errors import UsageError
    from herd.base.memory import parse_size
    from herd.base.paths import server_dir
    from herd.engine.memory import EngineConfig
    from herd.inference.providers import load_providers
    from herd.stack.config import ServerConfig
    from herd.stack.engine_process import EngineSpec
    from herd.stack.keys import read_keys
    from herd.stack.shielding import shields_of
    from herd.stack.toolkit import networks_of

    if num_draft and draft is None:
        raise UsageError(f"--num-draft {num_draft} goes with --draft", hint="add --draft ngram, or --draft MODEL")
    chosen = settings.value("model", model)
    file = api_key_file or settings.value("api_key_file")
    config = ServerConfig(
        model_name=name or chosen,
        host=settings.value("host", host),
        port=settings.value("port", port),
        keys=read_keys(Path(file)) if file else (),
        allowed_hosts=tuple(one.lower() for one in allow_host or ()),
        allowed_origins=tuple(allow_origin or ()),
        ttft_target_s=ttft_target,
        max_waiting=max_waiting,
        drain_s=drain,
        access_log=access_log,
        state_dir=str(state_dir or server_dir()),
        providers=load_providers(),
        shields=_shields(shields, none=no_shields),
        mcp_networks=tuple(allow_mcp or ()),
        database_url=settings.value("database", database) or None,
        files_url=settings.value("files", files) or None,
        runs_dir=str(runs.expanduser().absolute()),
    )
    shields_of(config.shields)
    networks_of(config.mcp_networks)
    engine = EngineConfig(
        context=context,
        max_sequences=max_sequences,
        token_budget=token_budget,
        cache_dtype=kv_dtype,
        num_draft=num_draft,
        prefix_dir=None if prefix_dir is None else str(prefix_dir.expanduser().absolute()),
        prefix_dir_bytes=parse_size(prefix_dir_size),
        memory_bytes=None if memory is None else parse_size(memory),
    )
    kind = settings.value("dtype", dtype)
    if (tp, pp) != (1, 1) and device is None:
        device = "cpu"
    spec = EngineSpec(
        model=chosen,
        dtype=None if kind == "auto" else kind,
        device=device_here(settings.value("device", device)),
        threads=settings.value("threads", threads),
        engine=engine,
        draft=draft,
        tp=tp,
        pp=pp,
        hang_s=engine_timeout,
    )
    _serve(config, spec, tool_style)


def _shields(flag: str | None, *, none: bool) -> tuple[str, ...]:
    """The shields that flag and settings name."""
    from herd.base.errors import UsageError
    from herd.stack.shielding import DEFAULT_SHIELDS

    if none and flag is not None:
        raise UsageError("--shields and --no-shields contradict each other", hint="leave out one")
    chosen = "off" if none else settings.value("shields", flag).strip()
    if chosen == "off":
        return ()
    return tuple(name.strip() for name in chosen.split(",") if name.strip()) or DEFAULT_SHIELDS


def device_here(chosen: str) -> str:
    """The device by name. torch, which knows whether there is a GPU, is imported only where one may be."""
    if chosen == "cpu" or (chosen == "auto" and not Path("/dev/nvidiactl").exists()):
        return "cpu"
    from herd.cli.load import choose_device

    return choose_device(chosen)


def _serve(config: ServerConfig, spec: EngineSpec, tool_style: str) -> None:
    import asyncio

    from herd.checkpoint.resolve import load_checkpoint_tokenizer, resolve_model
    from herd.cli.output import note
    from herd.stack.engine_process import EngineProcess
    from herd.stack.server import Server
    from herd.text.prompt import PromptFormat

    prompt_format = PromptFormat(tool_style=cast("ToolStyle", tool_style))
    tokenizer = load_checkpoint_tokenizer(resolve_model(spec.model))

    def ready(server: Server, process: EngineProcess) -> None:
        from herd.base.memory import gib

        info = process.info
        host = config.host if ":" not in config.host else f"[{config.host}]"
        note(
            f"{config.model_name}: {info['num_parameters']:,} parameters, {info['dtype']} on {info['device']}, "
            f"context {info['context']:,}, {gib(info['total_bytes'])} in all"
        )
        for provider in config.providers:
            note(f"{provider.name}: {', '.join(model.id for model in provider.models)} at {provider.base_url}")
        note(f"shields: {', '.join(config.shields) or 'none'}")
        keys = f"{len(config.keys)} keys" if config.keys else "no key needed"
        note(f"listening on http://{host}:{server.port}/v1 ({keys}); Ctrl-C ends it")
        note(f"a page to chat: http://{host}:{server.port}/")

    asyncio.run(Server(config, spec, tokenizer, prompt_format=prompt_format).run(ready))
