"""`herd data`: curate text, look at it, make tokens of it, mix them. `herd data classifier` is in a file of its own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from herd.base import settings
from herd.cli import data_classifier
from herd.cli.load import JsonOption

if TYPE_CHECKING:
    from herd.data.curate.config import CurateConfig
    from herd.data.curate.report import CurateReport

app = typer.Typer(help="Curate text, make tokens of it, mix them.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(data_classifier.app, name="classifier")

FilesArgument = Annotated[
    list[str], typer.Argument(help="Files, folders, globs or URLs of records (.jsonl, .txt, .parquet, .warc, .html).")
]
OutputOption = Annotated[Path, typer.Option("--output", "-o", help="Folder of the result.")]
WorkersOption = Annotated[int | None, typer.Option(help="Processes. [default: one a core]")]


def _workers(given: int | None) -> int:
    import os

    return len(os.sched_getaffinity(0)) if given is None and hasattr(os, "sched_getaffinity") else given or os.cpu_count() or 1


@app.command("curate")
def curate(
    sources: Annotated[
        list[str] | None, typer.Argument(help="A config (.toml) first, if there is one; then sources, in place of the config's own.")
    ] = None,
    preset: Annotated[str | None, typer.Option(help="Stages without a config: web, clean or dedup.")] = None,
    output: OutputOption = Path("curated"),
    workers: WorkersOption = None,
    ray: Annotated[
        bool, typer.Option("--ray", help="Let Ray carry it out: the cluster of RAY_ADDRESS, or one that is started here.")
    ] = False,
    plan_only: Annotated[bool, typer.Option("--plan-only", help="Write the plan into --output and stop; see herd data slurm.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the resolved config and stop.")] = False,
    json: JsonOption = False,
) -> None:
    """Curate text by a config or a preset; the same command again goes on where it was stopped.

    The folder gets documents/ (JSON lines), report.html with plots, report.json, and config.toml.
    """
    from herd.cli.output import line
    from herd.data.curate.config import to_toml

    config = _config(sources or [], preset)
    if dry_run:
        line(to_toml(config).rstrip())
        return
    _carry_out(config, output, workers=_workers(workers), ray=ray, plan_only=plan_only, json=json)


def _config(words: list[str], preset_name: str | None) -> CurateConfig:
    """The config that sources and flags name. Raises UsageError for neither or both of a config and a preset."""
    from dataclasses import replace

    from herd.base.errors import NotFoundError, UsageError
    from herd.data.curate import config as configs

    has_file = bool(words) and words[0].endswith(".toml")
    if has_file == (preset_name is not None):
        raise UsageError(
            "name a config or a preset, one of them", hint="herd data curate --preset web FILES, or herd data curate CONFIG.toml"
        )
    if preset_name is not None:
        return configs.CurateConfig(name=preset_name, sources=tuple(words), stages=configs.preset(preset_name))
    try:
        config = configs.from_toml(Path(words[0]).read_text(encoding="utf-8"))
    except OSError as error:
        raise NotFoundError(f"cannot read {words[0]}: {error.strerror}", hint="check the path") from error
    return replace(config, sources=tuple(words[1:])) if words[1:] else config


def _carry_out(config: CurateConfig, output: Path, *, workers: int, ray: bool = False, plan_only: bool = False, json: bool = False) -> None:
    import os
    import time

    from herd.cli.output import note
    from herd.data.curate.report import finish
    from herd.data.curate.run import prepare
    from herd.data.executor.local import run_local

    plan = prepare(config, output)
    if plan_only:
        note(f"wrote {output / 'plan.json'}; carry it out: herd data run, or herd data slurm")
        return
    started = time.monotonic()
    if ray:
        from herd.data.executor.tasks import run_ray

        run_ray(plan, output, address=os.environ.get("RAY_ADDRESS"), workers=workers)
    else:
        run_local(plan, output, workers=workers)
    report = finish(config, plan, output)
    _tell(report, output, json=json)
    note(f"{time.monotonic() - started:.1f} s with {workers} workers; documents and report are in {output}")


def _tell(report: CurateReport, folder: Path, *, json: bool) -> None:
    from herd.base.config_io import to_dict
    from herd.cli.output import facts, line, print_json, table
    from herd.data.curate.page import megabytes

    if json:
        print_json(to_dict(report))
        return
    rows = []
    for stage in report.stages:
        for reason, (documents, size) in sorted(stage["dropped"].items(), key=lambda item: -item[1][1]) or [("", (0, 0))]:
            rows.append([stage["stage"], reason, f"{documents:,}" if reason else "", megabytes(size) if reason else ""])
    table(rows, ("stage", "dropped for", "documents", "text"))
    line()
    total = report.total
    facts(
        {
            "in": f"{total['documents_in']:,} documents, {megabytes(total['bytes_in'])}",
            "out": f"{total['documents_out']:,} documents, {megabytes(total['bytes_out'])}",
            "report": str(folder / "report.html"),
        }
    )


@app.command("run")
def run(
    plan: Annotated[Path, typer.Argument(help="The plan.json of a run (herd data curate --plan-only).")],
    step: Annotated[str | None, typer.Option(help="Only this step; what it reads has to be done.")] = None,
    task: Annotated[int, typer.Option(help="Of the step's shards, take number TASK and every TASKS-th after it.")] = 0,
    tasks: Annotated[int, typer.Option(help="How many tasks share the step.")] = 1,
    workers: WorkersOption = None,
    json: JsonOption = False,
) -> None:
    """Carry out a plan, or one task of one of its steps: what a Slurm array calls. What is done already is left alone."""
    from herd.base.errors import UsageError
    from herd.cli.output import line, print_json
    from herd.data.executor.local import run_local
    from herd.data.executor.plan import read_plan
    from herd.data.executor.tasks import run_task

    if step is None and (task, tasks) != (0, 1):
        raise UsageError("--task and --tasks go with --step", hint="name the step, or leave them out to carry out the whole plan")
    steps, folder = read_plan(plan), plan.absolute().parent
    done = run_local(steps, folder, workers=_workers(workers)) if step is None else run_task(steps, step, folder, task=task, tasks=tasks)
    if json:
        print_json({"shards_done": done})
    else:
        line(f"{done} shards done; the rest was done before" if step is None else f"{done} shards of {step} done")


@app.command("slurm")
def slurm(
    plan: Annotated[Path, typer.Argument(help="The plan.json of a run (herd data curate --plan-only).")],
    partition: Annotated[str | None, typer.Option(help="Partition of the cluster.")] = None,
    account: Annotated[str | None, typer.Option(help="Account that pays.")] = None,
    time: Annotated[str, typer.Option(help="Time limit of a task.")] = "04:00:00",
    memory: Annotated[str, typer.Option(help="Memory of a task.")] = "8G",
    max_tasks: Annotated[int, typer.Option(help="Tasks of an array at most: the cluster's MaxArraySize.")] = 1000,
    at_once: Annotated[int, typer.Option(help="Tasks that run together at most; 0: all.")] = 0,
    setup: Annotated[str, typer.Option(help="A line to run first in every task, as `module load python`.")] = "",
    submit: Annotated[bool, typer.Option("--submit", help="Hand the arrays to sbatch, each to start after the one before.")] = False,
    json: JsonOption = False,
) -> None:
    """Write a job array for every step of a plan, and with --submit start them. `herd data report` ends such a run."""
    from herd.cli.output import line, print_json
    from herd.data.executor import slurm as arrays
    from herd.data.executor.plan import read_plan

    options = arrays.SlurmOptions(
        partition=partition, account=account, time=time, memory=memory, max_tasks=max_tasks, at_once=at_once, setup=setup
    )
    scripts = arrays.write_scripts(read_plan(plan), plan.absolute().parent, options)
    ids = arrays.submit(scripts) if submit else []
    if json:
        print_json({"scripts": [str(script) for script in scripts], "jobs": ids})
        return
    for number, script in enumerate(scripts):
        line(f"{ids[number]}  {script}" if ids else str(script))


@app.command("report")
def report(
    folder: Annotated[Path, typer.Argument(help="The folder of a run of herd data curate.")],
    json: JsonOption = False,
) -> None:
    """Write documents/, report.html and report.json of a run whose steps are done, and print what it came to."""
    from herd.data.curate.report import finish, read_run

    config, plan = read_run(folder)
    _tell(finish(config, plan, folder), folder, json=json)


@app.command("inspect")
def inspect(
    files: Annotated[list[str], typer.Argument(help="Files, folders, globs or URLs of records; or one folder of herd data tokenize.")],
    samples: Annotated[int, typer.Option(help="Texts to show.")] = 3,
    model: Annotated[str | None, typer.Option("--model", "-m", help="Whose tokenizer decodes samples of a folder of tokens.")] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Read every file of a folder of tokens and compare its digest.")] = False,
    json: JsonOption = False,
) -> None:
    """What files hold: records, fields, languages, lengths and samples; of a folder of tokens its figures."""
    from herd.cli.output import facts, line, print_json

    if len(files) == 1 and (Path(files[0]) / "index.json").is_file():
        report = _inspect_tokens(Path(files[0]), samples, model, verify=verify)
    else:
        from herd.data.inspect import inspect_files
        from herd.data.sources import expand

        report = inspect_files(expand(files), samples=samples)
    if json:
        print_json(report)
        return
    shown = report.pop("samples")
    facts({name: _plain(value) for name, value in report.items()})
    for text in shown:
        line(f"\n{text}")


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(count)}" for key, count in value.items()) or "none"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _inspect_tokens(folder: Path, samples: int, model: str | None, *, verify: bool) -> dict[str, Any]:
    import numpy as np

    from herd.data.token_shards import TokenDataset

    data = TokenDataset(folder)
    if verify:
        data.verify()
    lengths = np.concatenate([np.diff(data.ends(shard), prepend=0) for shard in range(len(data.shards))] or [np.empty(0, np.int64)])
    texts: list[str] = []
    if model is not None:
        from herd.checkpoint.resolve import load_checkpoint_tokenizer, resolve_model

        tokenizer = load_checkpoint_tokenizer(resolve_model(model))
        texts = [tokenizer.decode(data.document(number)[:100].tolist()) for number in range(min(samples, data.num_documents))]
    return {
        "shards": len(data.shards),
        "documents": data.num_documents,
        "tokens": data.num_tokens,
        "vocab_size": data.vocab_size,
        "tokens_median": int(np.median(lengths)) if len(lengths) else 0,
        "tokens_largest": int(lengths.max()) if len(lengths) else 0,
        "loss_mask": data.has_counts,
        "tokenizer": data.tokenizer,
        "samples": texts,
    }


_BY = ("url", "exact", "minhash", "lines")


@app.command("dedup")
def dedup(
    files: FilesArgument,
    output: OutputOption = Path("deduplicated"),
    by: Annotated[str, typer.Option(help="Which of url, exact, minhash, lines, in this order.")] = "url,exact,minhash",
    similarity: Annotated[float, typer.Option(help="Of near duplicates (minhash): the share of 5-grams in common, about.")] = 0.7,
    workers: WorkersOption = None,
    json: JsonOption = False,
) -> None:
    """Remove duplicates: older pages of an address, equal texts, near duplicates, lines that come too often."""
    from herd.base.errors import UsageError, did_you_mean
    from herd.data.curate.config import CurateConfig
    from herd.data.dedup.keys import ExactDedup, UrlDedup
    from herd.data.dedup.lines import LineDedup
    from herd.data.dedup.minhash import MinHashDedup

    makers = {"url": UrlDedup(), "exact": ExactDedup(), "minhash": MinHashDedup(min_similarity=similarity), "lines": LineDedup()}
    chosen = [name.strip() for name in by.split(",") if name.strip()]
    for name in chosen:
        if name not in makers:
            raise UsageError(f"--by names {name!r}", hint=did_you_mean(name, _BY, otherwise="of these: " + ", ".join(_BY)))
    config = CurateConfig(name="dedup", sources=tuple(files), stages=tuple(makers[name] for name in chosen))
    _carry_out(config, output, workers=_workers(workers), json=json)


@app.command("decontaminate")
def decontaminate(
    files: FilesArgument,
    against: Annotated[list[str], typer.Option(help="Files of an evaluation set; may be given several times.")],
    output: OutputOption = Path("decontaminated"),
    field: Annotated[list[str] | None, typer.Option(help="Of the evaluation records only this field; may be given several times.")] = None,
    long: Annotated[int, typer.Option(help="A run of so many words in common is enough.")] = 13,
    short: Annotated[int, typer.Option(help="Shorter runs count by the share of an evaluation text that they make up.")] = 8,
    min_share: Annotated[float, typer.Option(help="That share.")] = 0.5,
    workers: WorkersOption = None,
    json: JsonOption = False,
) -> None:
    """Remove documents that hold a piece of an evaluation set, by n-grams of words in common."""
    from herd.data.curate.config import CurateConfig
    from herd.data.stages.overlap import Decontaminate

    stage = Decontaminate(against=tuple(against), fields=tuple(field or ()), long=long, short=short, min_share=min_share)
    config = CurateConfig(name="decontaminate", sources=tuple(files), stages=(stage,))
    _carry_out(config, output, workers=_workers(workers), json=json)


@app.command("tokenize")
def tokenize(
    files: FilesArgument,
    output: OutputOption = Path("tokens"),
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Whose tokenizer: path, hub name or alias. [variable: HERD_MODEL]")
    ] = None,
    chat: Annotated[bool, typer.Option("--chat", help="The records are dialogues: into the 3.1 format.")] = False,
    answers_only: Annotated[bool, typer.Option("--answers-only", help="Of dialogues only the answers count in the loss.")] = False,
    languages: Annotated[str, typer.Option(help="Only records of these, as en,de. [default: all]")] = "",
    files_per_shard: Annotated[int, typer.Option(help="Files that make one shard.")] = 1,
    workers: WorkersOption = None,
    json: JsonOption = False,
) -> None:
    """Make token shards of records: flat files that are mapped, not loaded, with the ends of documents."""
    from herd.checkpoint.resolve import resolve_model
    from herd.cli.output import facts, print_json
    from herd.data.tokenise import TokeniseConfig, tokenise

    place = resolve_model(settings.value("model", model))
    config = TokeniseConfig(
        tokenizer=str(place.absolute()),
        kind="chat" if chat else "text",
        answers_only=answers_only,
        languages=tuple(name.strip() for name in languages.split(",") if name.strip()),
        files_per_shard=files_per_shard,
    )
    report = tokenise(files, output, config, workers=_workers(workers))
    if json:
        print_json(report)
        return
    facts({name: _plain(value) for name, value in report.items()})


@app.command("mix")
def mix(
    file: Annotated[Path, typer.Argument(help="A mix file (TOML): sources, phases, sequence_length, seed.")],
    samples: Annotated[int | None, typer.Option(help="The length of the run in samples (rows). [default: once through everything]")] = None,
    json: JsonOption = False,
) -> None:
    """Pack what a mix file names and tell what a run reads of it: rows, fill, epochs of every source; refused if the data ends before."""
    from herd.cli.output import line, print_json, table
    from herd.data.mix_file import open_mix, read_mix
    from herd.data.packed import PackedTokens

    plan = read_mix(file)
    mixture = open_mix(plan, num_samples=samples)
    rows = {name: source for name, source in mixture.sources.items() if isinstance(source, PackedTokens)}
    length = samples if samples is not None else sum(len(source) for source in rows.values())
    if mixture.schedule.ended_at is None and samples is None:
        mixture.schedule.used(length)
    length = min(length, mixture.schedule.ended_at or length)
    epochs = mixture.epochs(length)
    sources = {
        name: {
            "rows": len(source),
            "fill": round(source.fill, 4),
            "tokens": source.num_tokens,
            "dropped": source.num_dropped,
            "epochs": round(epochs[name], 3),
        }
        for name, source in rows.items()
    }
    if json:
        print_json({"samples": length, "sequence_length": plan.sequence_length, "fingerprint": mixture.fingerprint, "sources": sources})
        return
    header = ("source", "rows", "fill", "tokens", "documents left out", "epochs")
    table([[name, *(f"{value:,}" for value in figures.values())] for name, figures in sources.items()], header)
    line(f"\n{length:,} samples of {plan.sequence_length:,} tokens: {length * plan.sequence_length:,} tokens, padding included")
