"""`herd guard check | eval | train`: judge a text by shields, print the detectors' figures, train them. `herd guard TEXT` is `check`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from herd.base import settings
from herd.cli.load import DeviceOption, JsonOption

if TYPE_CHECKING:
    from herd.safety.corpus import Example
    from herd.safety.shields import Report
    from herd.safety.verdict import Shield

_MAX_FILE = 16 * 2**20
_POINTS = ("input", "output", "tool-input", "tool-output")


class _TextFirst(TyperGroup):
    """A group whose first argument may be the text itself: what names no command is an argument of `check`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ("--help", "-h"):
            args = ["check", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    help="Judge text by the guards; `herd guard TEXT` is short for `herd guard check TEXT`.",
    cls=_TextFirst,
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.command("check")
def check(
    text: Annotated[str | None, typer.Argument(help="The text, or the path of a file that holds it. - or none reads stdin.")] = None,
    point: Annotated[str, typer.Option("--point", "-p", help="Whose text it is: input, output, tool-input or tool-output.")] = "input",
    shields: Annotated[
        str | None, typer.Option(help="Shields by name, with commas: harm, injection, code-shield, secrets, pii. [default: all but pii]")
    ] = None,
    threshold: Annotated[
        list[str] | None, typer.Option("--threshold", help="NAME=NUMBER: a shield's own threshold, as harm=0.7. May be given again.")
    ] = None,
    llama_guard: Annotated[str | None, typer.Option(help="Also ask this Llama Guard: path, hub name or alias.")] = None,
    prompt_guard: Annotated[Path | None, typer.Option(help="Also ask this Prompt Guard: the folder of its checkpoint.")] = None,
    redact: Annotated[
        bool, typer.Option("--redact", help="Print the text with personal data and secrets replaced, and judge nothing else.")
    ] = False,
    device: DeviceOption = None,
    json: JsonOption = False,
) -> None:
    """Judge a text; exit code 5 when a shield objects to it."""
    import asyncio

    from herd.cli.output import print_json, write
    from herd.safety.shields import Shields
    from herd.safety.verdict import Content, TouchPoint

    content = _text(text)
    if redact:
        write(_redacted(content))
        return
    wanted = Content(point=TouchPoint(_point(point)), text=content)
    standing = [*_chosen(shields, threshold or []), *_models(llama_guard, prompt_guard, device, threshold or [])]
    report = asyncio.run(Shields(standing, deadline_s=600.0).check(wanted))
    if json:
        print_json(report.to_dict())
    else:
        _tell(report)
    if report.unsafe:
        raise typer.Exit(5)


def _text(argument: str | None) -> str:
    """The argument, the file that it names, or stdin. Raises FormatError for what is not UTF-8, UsageError for a file that is too large."""
    from herd.base.errors import FormatError, UsageError
    from herd.cli.output import note
    from herd.cli.stdin import argument_or_stdin

    content = argument_or_stdin(argument, "text", example='herd guard check "some text"', chomp=True)
    if argument is None or argument == "-" or len(argument) > 1024 or "\n" in argument or "\0" in argument:
        return content
    path = Path(argument)
    try:
        if not path.is_file():
            return content
        if path.stat().st_size > _MAX_FILE:
            raise UsageError(f"{path} is over {_MAX_FILE // 2**20} MiB", hint="judge it in pieces")
        note(f"judging the file {path}")
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise FormatError(f"{path} is not UTF-8: {error.reason} at byte {error.start}", hint="convert it: iconv -t UTF-8") from error
    except OSError:
        return content


def _point(name: str) -> str:
    from herd.base.errors import UsageError, did_you_mean

    if name not in _POINTS:
        raise UsageError(f"unknown point {name!r}", hint=did_you_mean(name, _POINTS, otherwise="points: " + ", ".join(_POINTS)))
    return name


def _thresholds(given: list[str]) -> dict[str, float]:
    from herd.base.errors import UsageError

    found: dict[str, float] = {}
    for word in given:
        name, equals, number = word.partition("=")
        try:
            value = float(number)
        except ValueError:
            value = -1.0
        if not equals or not 0.0 <= value <= 1.0:
            raise UsageError(f"the threshold {word!r} is not NAME=NUMBER with a number from 0 to 1", hint="write --threshold harm=0.7")
        found[name] = value
    return found


_MODEL_SHIELDS = ("llama-guard", "prompt-guard")


def _chosen(names: str | None, given: list[str]) -> list[Shield]:
    """The shields that ship, as asked for."""
    from herd.base.errors import UsageError
    from herd.safety.defaults import DEFAULT_NAMES, make_shield

    chosen = DEFAULT_NAMES if names is None else tuple(dict.fromkeys(name.strip() for name in names.split(",") if name.strip()))
    thresholds = _thresholds(given)
    for name in thresholds:
        if name not in (*chosen, *_MODEL_SHIELDS):
            raise UsageError(f"a threshold for {name!r}, which is not among the shields", hint="shields: " + ", ".join(chosen))
    return [make_shield(name, threshold=thresholds.get(name)) for name in chosen]


def _models(llama_guard: str | None, prompt_guard: Path | None, device: str | None, given: list[str]) -> list[Shield]:
    """Guards that are models, loaded when they are asked for."""
    from herd.base.errors import UsageError
    from herd.cli.load import choose_device, load_llm

    thresholds = _thresholds(given)
    for name, there in zip(_MODEL_SHIELDS, (llama_guard, prompt_guard), strict=True):
        if name in thresholds and there is None:
            raise UsageError(f"a threshold for {name!r}, which is not among the shields", hint=f"name it: --{name} ...")
    found: list[Shield] = []
    if llama_guard is not None:
        from herd.safety.guard_model import measured_threshold
        from herd.safety.llama_guard import LlamaGuard

        inference = load_llm(llama_guard, device=device).inference
        threshold = thresholds["llama-guard"] if "llama-guard" in thresholds else measured_threshold(llama_guard)
        found.append(LlamaGuard(inference, threshold=threshold))
    if prompt_guard is not None:
        from herd.safety.prompt_guard import load_prompt_guard

        place = choose_device(settings.value("device", device))
        found.append(load_prompt_guard(prompt_guard, device=place, threshold=thresholds.get("prompt-guard")))
    return found


def _redacted(text: str) -> str:
    from herd.safety.patterns import pii_shield, secret_shield
    from herd.safety.verdict import redact

    return redact(text, [*pii_shield().judge(text).findings, *secret_shield(action="redact").judge(text).findings])


def _tell(report: Report) -> None:
    from herd.cli.output import line, note, table

    line("unsafe" if report.unsafe else "safe")
    rows = [
        (
            verdict.shield,
            "failed" if verdict.failed else (verdict.treatment if verdict.unsafe else "pass"),
            "" if verdict.score is None else f"{verdict.score:.3f}",
            ",".join(verdict.categories),
            verdict.reason if verdict.unsafe or verdict.failed else "",
        )
        for verdict in report.verdicts
    ]
    if rows:
        table(rows, ("shield", "verdict", "score", "categories", "why"))
    else:
        note("no shield stands at this point; choose others with --shields")


DataOption = Annotated[Path | None, typer.Option(help="Data folder with `safety` in it. [variable: HERD_DATA]")]


def _data(flag: Path | None) -> Path:
    from herd.base.errors import UsageError

    folder = settings.value("data", str(flag) if flag else None)
    if not folder:
        raise UsageError("no data folder was given", hint="pass --data FOLDER, or set HERD_DATA; the model card names the sources")
    return Path(folder)


@app.command("eval")
def evaluate(
    data: DataOption = None,
    detectors: Annotated[Path | None, typer.Option(help="A detectors.npz of your own. [default: the ones that ship]")] = None,
    llama_guard: Annotated[str | None, typer.Option(help="Measure this guard model instead: path, hub name or alias.")] = None,
    threshold: Annotated[
        str | None, typer.Option(help="Of the guard model: a number, or `tune` to choose it on the tuning texts. [default: its own]")
    ] = None,
    device: DeviceOption = None,
    json: JsonOption = False,
) -> None:
    """Measure the detectors, or a guard model, on the held-back texts of a data folder: the figures of the model card, a few minutes."""
    from herd.base.errors import UsageError
    from herd.cli.output import line, print_json
    from herd.safety.card import table
    from herd.safety.corpus import read_corpus
    from herd.safety.detectors import HEADS, load_detectors
    from herd.safety.measuring import evaluate as measure_all

    if llama_guard is None and threshold is not None:
        raise UsageError("a threshold and no guard model", hint="name the model: --llama-guard MODEL")
    if llama_guard is not None and detectors is not None:
        raise UsageError("a guard model and detectors cannot be measured at once", hint="leave out --detectors or --llama-guard")
    if llama_guard is None:
        loaded = load_detectors(detectors)
        report = measure_all(loaded, read_corpus(_data(data)))
    else:
        report = _measured_guard(llama_guard, threshold, device, read_corpus(_data(data)))
    if json:
        print_json(report)
        return
    for head in (head for head in HEADS if head in report):
        line(f"{head}, threshold {report[head]['threshold']}\n\n{table(report, head)}\n")
    line(f"categories: {report['categories']['accuracy']} of {report['categories']['num']} named right")


def _measured_guard(model: str, threshold: str | None, device: str | None, examples: list[Example]) -> dict[str, Any]:
    import asyncio

    from herd.cli.load import choose_device
    from herd.inference.async_llm import AsyncLLM
    from herd.safety.guard_model import choose_threshold, guard_report, measured_threshold

    async def run() -> dict[str, Any]:
        async with AsyncLLM(model, device=choose_device(settings.value("device", device))) as llm:
            if threshold == "tune":
                chosen = await choose_threshold(llm.inference, examples)
            else:
                chosen = measured_threshold(model) if threshold is None else _thresholds([f"llama-guard={threshold}"])["llama-guard"]
            return await guard_report(llm.inference, chosen, examples)

    return asyncio.run(run())


@app.command("train")
def train(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for detectors.npz, figures.json and MODEL_CARD.md.")],
    data: DataOption = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is at --output.")] = False,
    json: JsonOption = False,
) -> None:
    """Train the detectors on a data folder, measure them and write their card; some minutes on one core."""
    from herd.cli.output import note, print_json
    from herd.safety.train import run

    report = run(_data(data), output, overwrite=overwrite)
    if json:
        print_json(report)
        return
    note(f"wrote detectors, figures and model card to {output}; use them: herd guard eval --detectors {output}/detectors.npz")
