"""`herd data classifier label | train | score`: a quality classifier from labels to scores."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from herd.cli.load import DeviceOption, DtypeOption, JsonOption, ModelOption, ThreadsOption, load_llm

app = typer.Typer(help="A linear classifier of texts: label, train, score.", no_args_is_help=True, rich_markup_mode=None)

LabelledArgument = Annotated[list[str], typer.Argument(help="Files of records with a text and a label.")]
RecordsArgument = Annotated[list[str], typer.Argument(help="Files, folders, globs or URLs of records.")]


def _records(files: list[str]) -> Iterator[dict[str, Any]]:
    from herd.data.records import read_records
    from herd.data.sources import expand

    for file in expand(files):
        yield from read_records(file)


@app.command("label")
def label(
    files: RecordsArgument,
    model: ModelOption = None,
    good_from: Annotated[int, typer.Option(help="Points of five from which on a text is labelled good; below it is poor.")] = 3,
    limit: Annotated[int, typer.Option(help="Records at most; 0: all.")] = 0,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    threads: ThreadsOption = None,
) -> None:
    """Let a model judge texts and print them with `points` and `label`, a JSON object a line: labels for `train`."""
    import json
    from itertools import islice

    from herd.base.progress import track_steps
    from herd.cli.output import line
    from herd.data.judge import labelled
    from herd.engine.grammar.spec import Grammar
    from herd.inference.params import SamplingParams
    from herd.text.messages import Message

    records = _records(files)
    first = next(records, None)
    if first is None:
        return
    llm = load_llm(model, device=device, dtype=dtype, threads=threads)
    params, digit = SamplingParams(temperature=0.0, max_tokens=8), Grammar.choice([str(points) for points in range(6)])

    def ask(prompt: str) -> str:
        return llm.chat([Message.user(prompt)], params, grammar=digit).text

    def all_records() -> Iterator[dict[str, Any]]:
        yield first
        yield from records

    with track_steps("judging", total=limit or None) as advance:
        for number, record in enumerate(labelled(islice(all_records(), limit or None), ask, good_from=good_from), start=1):
            line(json.dumps(record, ensure_ascii=False))
            advance(number, "")


@app.command("train")
def train(
    files: LabelledArgument,
    output: Annotated[Path, typer.Option("--output", "-o", help="File of the classifier (.npz).")],
    label_field: Annotated[str, typer.Option(help="Field of a record that holds its label.")] = "label",
    text_field: Annotated[str, typer.Option(help="Field of a record that holds its text.")] = "text",
    epochs: Annotated[int, typer.Option(help="Passes over the texts.")] = 5,
    lr: Annotated[float, typer.Option(help="Learning rate of AdaGrad.")] = 0.5,
    buckets: Annotated[int, typer.Option(help="Hashed features, a power of two.")] = 262_144,
    seed: Annotated[int, typer.Option(help="Order of the texts.")] = 0,
    json: JsonOption = False,
) -> None:
    """Fit a classifier to labelled texts; a tenth of them, chosen by their digest, is held out and measures it."""
    from dataclasses import asdict

    from herd.base.errors import FormatError
    from herd.base.progress import track_steps
    from herd.cli.output import facts, print_json
    from herd.data.classifier import ClassifierConfig, train_classifier

    examples: list[tuple[str, str]] = []
    for record in _records(files):
        if not isinstance(record.get(text_field), str) or record.get(label_field) is None:
            message = f"a record with the fields {sorted(record)} lacks {text_field!r} or {label_field!r}"
            raise FormatError(message, hint="name the fields: --text-field, --label-field")
        examples.append((record[text_field], str(record[label_field])))
    config = ClassifierConfig(buckets=buckets, epochs=epochs, lr=lr, seed=seed)
    with track_steps("training", total=None) as advance:
        classifier, report = train_classifier(examples, config, on_step=lambda done: advance(done, ""))
    classifier.save(output)
    if json:
        print_json({"file": str(output), **asdict(report)})
        return
    facts(
        {
            "trained on": f"{report.num_train:,} texts",
            "held out": f"{report.num_heldout:,} texts",
            "accuracy": f"{report.accuracy:.3f} (always the commonest label: {report.majority:.3f})",
            **{
                name: f"precision {values['precision']:.3f}, recall {values['recall']:.3f}, {values['count']:,.0f} held out"
                for name, values in report.labels.items()
            },
            "file": str(output),
        }
    )


@app.command("score")
def score(
    files: RecordsArgument,
    classifier: Annotated[Path, typer.Option("--classifier", "-c", help="File of the classifier (.npz).")],
    text_field: Annotated[str, typer.Option(help="Field of a record that holds its text.")] = "text",
) -> None:
    """Print every record with `scores`, the probability of each label, a JSON object a line."""
    import json

    from herd.base.errors import FormatError
    from herd.cli.output import line
    from herd.data.classifier import load_classifier

    model = load_classifier(str(classifier))
    for record in _records(files):
        if not isinstance(record.get(text_field), str):
            raise FormatError(f"a record with the fields {sorted(record)} lacks {text_field!r}", hint="name the field: --text-field")
        scores = {name: round(value, 4) for name, value in model.scores(record[text_field]).items()}
        line(json.dumps({**record, "scores": scores}, ensure_ascii=False))
