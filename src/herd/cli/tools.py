"""`herd tools list | call | doctor | agree | index | serve`, and `herd code`: the tools of this installation, by hand."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from herd.cli.load import JsonOption

if TYPE_CHECKING:
    from herd.tools.code.outcome import Outcome
    from herd.tools.tool import Attachment, ToolResult
    from herd.tools.toolbox import Toolbox

app = typer.Typer(help="Tools that a model may call: list, try and serve them.", no_args_is_help=True, rich_markup_mode=None)

FilesOption = Annotated[
    Path | None, typer.Option("--files", help="Folder that the file tools may read. [variable: HERD_FILES_ROOT; default: none]")
]
IndexOption = Annotated[
    Path | None, typer.Option("--index", help="Index of files that searches use offline. [variable: HERD_SEARCH_INDEX; default: none]")
]
OutputOption = Annotated[Path | None, typer.Option("--output", "-o", help="Folder to write pictures and files into.")]


def _with_toolbox(action: Any, *, files: Path | None, index: Path | None, code: bool = True) -> Any:
    """Open the toolbox, do something with it, and close it."""
    import asyncio

    from herd.tools.toolbox import ToolboxConfig, open_toolbox

    async def main() -> Any:
        config = ToolboxConfig.from_settings(
            files_root=None if files is None else str(files), search_index=None if index is None else str(index), warm=0, code=code
        )
        box = await open_toolbox(config)
        try:
            return await action(box)
        finally:
            await box.close()

    return asyncio.run(main())


@app.command("list")
def list_(files: FilesOption = None, index: IndexOption = None, json: JsonOption = False) -> None:
    """List the tools that there are by group, and why the others are not there."""
    from herd.cli.output import line, note, print_json, table

    async def action(box: Toolbox) -> tuple[list[dict[str, Any]], dict[str, str]]:
        return [_described(tool, group.name) for group in box.registry.groups for tool in group.tools], box.missing

    tools, missing = _with_toolbox(action, files=files, index=index)
    if json:
        print_json({"tools": tools, "missing": missing})
        return
    table([[tool["name"], tool["group"], " ".join(tool["taint"]) or "-", _short(tool["description"])] for tool in tools], _HEADER)
    if missing:
        line()
    for name, reason in missing.items():
        note(f"{name}: {reason}")


_HEADER = ["tool", "group", "taint", "what it does"]


def _described(tool: Any, group: str) -> dict[str, Any]:
    taint = [name for name in ("reads_untrusted", "reads_private", "acts_outside") if getattr(tool.taint, name)]
    return {"name": tool.name, "group": group, "description": tool.description, "parameters": tool.parameters, "taint": taint}


def _short(text: str) -> str:
    first = text.split("\n")[0]
    return first if len(first) <= 80 else first[:77] + "..."


@app.command("call")
def call(
    name: Annotated[str, typer.Argument(help="The tool's name, as `herd tools list` shows it.")],
    arguments: Annotated[str, typer.Argument(help="Its arguments as a JSON object. - reads them from stdin.")] = "{}",
    files: FilesOption = None,
    index: IndexOption = None,
    output: OutputOption = None,
    json: JsonOption = False,
) -> None:
    """Call a tool as a model would, with its arguments as JSON; exit code 1 if the call fails."""
    import json as json_module

    from herd.base.errors import UsageError
    from herd.cli.output import line, print_json
    from herd.cli.stdin import argument_or_stdin
    from herd.tools.errors import ToolError

    text = argument_or_stdin(arguments, "arguments", example='herd tools call clock \'{"timezone": "Europe/Berlin"}\'')
    try:
        value = json_module.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"the arguments are not JSON: {error}", hint='give an object, as \'{"query": "llamas"}\'') from error

    async def action(box: Toolbox) -> ToolResult:
        box.registry.find(name)
        return await box.registry.call(name, value)

    result = _with_toolbox(action, files=files, index=index)
    if output is not None:
        _save(result.attachments, output)
    if json:
        print_json(result.to_dict())
    elif result.ok:
        line(_printable(result.text))
    if not result.ok:
        raise ToolError(
            f"{name} failed ({result.error_code}): {_printable(result.text)}", hint="`herd tools list --json` shows what it takes"
        )


@app.command("doctor")
def doctor(json: JsonOption = False) -> None:
    """Try each kind of jail and each MCP server, and say what works and what helps; exit code 5 if no jail works."""
    import asyncio

    from herd.base.errors import GateError
    from herd.cli.output import line, print_json
    from herd.tools.code.choose import survey
    from herd.tools.jail.interpreter import chosen

    interpreter = chosen()
    reports = survey(interpreter)
    servers = asyncio.run(_servers())
    works = next((report.kind for report in reports if report.works), None)
    if json:
        listed = [report.to_dict() for report in reports]
        print_json({"python": interpreter.path, "jail": works, "jails": listed, "servers": servers})
    else:
        line(f"code runs with {interpreter.path} in {works}" if works else "code does not run: no jail works")
        for report in reports:
            line(f"  {report.kind}: {'works' if report.works else 'does not work'}, {report.reason}" + _hint(report.hint))
        for name, state in servers.items():
            line(f"  MCP server {name}: {state}")
    if works is None:
        raise GateError("no jail works on this machine, so no code is run", hint=reports[0].hint)


def _hint(text: str) -> str:
    return f"\n    hint: {text}" if text else ""


async def _servers() -> dict[str, str]:
    from herd.base.errors import HerdError
    from herd.tools.mcp.client import McpConnection
    from herd.tools.mcp.config import load_servers
    from herd.tools.mcp.pins import Pins

    found: dict[str, str] = {}
    for config in load_servers():
        connection, pins = McpConnection(config), Pins()
        try:
            states = [pins.state(config.name, tool) for tool in await connection.list_tools()]
            found[config.name] = (
                ", ".join(f"{states.count(state)} {state}" for state in ("agreed", "new", "changed") if state in states) or "no tools"
            )
        except HerdError as error:
            found[config.name] = error.message
        finally:
            await connection.close()
    return found


@app.command("agree")
def agree(
    server: Annotated[str, typer.Argument(help="An MCP server of mcp.toml.")],
    yes: Annotated[bool, typer.Option("--yes", help="Agree without asking.")] = False,
) -> None:
    """Show what an MCP server says of its tools, and agree to it. A tool that changes later is not called until you agree again."""
    import asyncio

    from herd.base.errors import GateError, NotFoundError, did_you_mean
    from herd.cli.output import line, note
    from herd.tools.mcp.client import McpConnection
    from herd.tools.mcp.config import load_servers, servers_file
    from herd.tools.mcp.pins import Pins
    from herd.tools.mcp.tools import visible

    configs = {config.name: config for config in load_servers()}
    if server not in configs:
        hint = did_you_mean(server, configs, otherwise=f"servers are listed in {servers_file()}")
        raise NotFoundError(f"there is no MCP server {server!r}", hint=hint)
    pins = Pins()

    async def listed() -> Any:
        connection = McpConnection(configs[server])
        try:
            return await connection.list_tools()
        finally:
            await connection.close()

    tools = asyncio.run(listed())
    for tool in tools:
        line(f"{visible(tool.name)} ({pins.state(server, tool)})\n  {visible(tool.description)}\n")
    if not yes and not typer.confirm(f"Agree to these {len(tools)} tools?", err=True):
        raise GateError("nothing was agreed to", hint="leave tools out with tools = [...] in mcp.toml")
    pins.agree(server, tools)
    note(f"agreed to {len(tools)} tools of {server}")


@app.command("index")
def index(
    folder: Annotated[Path, typer.Argument(help="Folder of texts: .txt, .md, .html, .csv, .json, .py and others.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The file to write the index into; one that is there is replaced.")],
    json: JsonOption = False,
) -> None:
    """Index the texts of a folder, for searches without a network."""
    from herd.cli.output import note, print_json
    from herd.tools.files.index import build_index

    count = build_index(folder, output)
    if json:
        print_json({"index": str(output), "num_passages": count})
    note(f"wrote {count:,} passages to {output}")


@app.command("serve")
def serve(
    http: Annotated[bool, typer.Option("--http", help="Serve over streamable HTTP at /mcp; without it over stdin and stdout.")] = False,
    host: Annotated[str, typer.Option(help="Address to listen on with --http; one beyond loopback needs --api-key-file.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on with --http.")] = 8322,
    api_key_file: Annotated[Path | None, typer.Option(help="Keys to let in with --http, as `herd keys new` makes them.")] = None,
    files: FilesOption = None,
    index: IndexOption = None,
) -> None:
    """Serve the tools to other programs over the Model Context Protocol, until interrupted or until stdin ends."""
    from herd.cli.output import note

    async def over_http(box: Toolbox) -> None:
        import uvicorn

        from herd.stack.keys import read_keys
        from herd.tools.mcp.server import PATH, http_app

        digests = [key.digest for key in read_keys(api_key_file)] if api_key_file else []
        application = http_app(box.registry, host=host, key_digests=digests)
        note(f"{len(box.registry.tools())} tools at http://{host}:{port}{PATH}")
        await uvicorn.Server(uvicorn.Config(application, host=host, port=port, log_level="warning", access_log=False)).serve()

    async def over_stdio(box: Toolbox) -> None:
        from herd.tools.mcp.server import serve_stdio

        await serve_stdio(box.registry)

    _with_toolbox(over_http if http else over_stdio, files=files, index=index)


def code(
    source: Annotated[str | None, typer.Argument(help="A file of Python, or with --code the code itself. - or none reads stdin.")] = None,
    snippet: Annotated[str | None, typer.Option("--code", "-c", help="The code, in place of a file.")] = None,
    attach: Annotated[
        list[Path] | None, typer.Option("--attach", "-a", help="File to put into the working folder; may be given several times.")
    ] = None,
    output: OutputOption = None,
    timeout: Annotated[float, typer.Option(help="Seconds that the code may run.")] = 30.0,
    jail: Annotated[str | None, typer.Option(help="auto, bubblewrap or landlock. [variable: HERD_CODE_JAIL; default: auto]")] = None,
    python: Annotated[str | None, typer.Option(help="Python that runs it. [variable: HERD_CODE_PYTHON; default: herd's own]")] = None,
    json: JsonOption = False,
) -> None:
    """Run Python in the code interpreter's jail: no network, no files but its own, limits on time, memory and disk.

    Exit code 1 if the code fails or is stopped.
    """
    from herd.base.errors import NotFoundError, UsageError
    from herd.cli.output import note, print_json, write
    from herd.cli.stdin import argument_or_stdin
    from herd.tools.code.choose import choose
    from herd.tools.code.kernel import Kernel
    from herd.tools.errors import ToolError
    from herd.tools.jail.limits import JailLimits

    if snippet is not None and source is not None:
        raise UsageError("there is a file and --code", hint="give one of the two")
    if not 0 < timeout <= 3600:
        raise UsageError(f"--timeout is {timeout:g}", hint="above 0 and at most 3600 seconds")
    text = snippet
    if text is None and source not in (None, "-"):
        path = Path(str(source))
        if not path.is_file():
            raise NotFoundError(f"there is no file at {path}", hint="herd code --code '...' takes the code itself")
        text = path.read_text(encoding="utf-8")
    if text is None:
        text = argument_or_stdin(source, "code", example="herd code --code 'print(6 * 7)'")
    kernel = Kernel(choose(JailLimits(run_s=timeout), jail=jail, python=python))
    try:
        for path in attach or ():
            kernel.put(_attachment(path))
        outcome = kernel.run(text)
    finally:
        kernel.close()
    if output is not None:
        _save(outcome.attachments, output)
    if json:
        print_json(outcome.to_dict())
    else:
        write(_plain(outcome))
        for problem in outcome.left_out:
            note(f"left out: {problem}")
    if outcome.status != "completed":
        why = outcome.error.name if outcome.error else outcome.ended or outcome.status
        raise ToolError(
            f"the code {'was stopped' if outcome.status == 'timeout' else 'failed'}: {why}",
            hint="correct it, or give it a longer --timeout",
        )


def _plain(outcome: Outcome) -> str:
    """What the code printed and returned; what it complained of goes to stderr."""
    from herd.cli.output import note

    if outcome.stderr or outcome.error:
        note(_printable(outcome.stderr + (outcome.error.traceback if outcome.error else "")).rstrip("\n"))
    return _printable(outcome.stdout + (f"{outcome.result}\n" if outcome.result is not None else ""))


def _printable(text: str) -> str:
    """A stranger's text without what a terminal would obey."""
    return "".join(character for character in text if character in "\n\t" or character >= "\xa0" or " " <= character <= "~")


def _attachment(path: Path) -> Attachment:
    from herd.base.errors import NotFoundError
    from herd.tools.tool import Attachment

    try:
        data = path.read_bytes()
    except OSError as error:
        raise NotFoundError(f"there is no file at {path}", hint="check the path") from error
    return Attachment(name=path.name, mime_type="application/octet-stream", data=data)


def _save(attachments: tuple[Attachment, ...], folder: Path) -> None:
    """Write attachments below a folder. Their names are plain relative paths; one that is there already is not replaced."""
    from herd.base.atomic import atomic_file
    from herd.base.errors import UsageError
    from herd.cli.output import note

    for file in attachments:
        target = folder / file.name
        if not target.resolve().is_relative_to(folder.resolve()):
            raise UsageError(f"{target} leads out of {folder} by a link", hint="choose an empty --output")
        if target.exists():
            raise UsageError(f"{target} exists", hint="choose another --output, or remove it")
        with atomic_file(target) as path:
            path.write_bytes(file.data)
        note(f"wrote {target}")
