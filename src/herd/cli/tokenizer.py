"""`herd tokenizer train | encode | decode`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from herd.base import settings
from herd.cli.load import JsonOption, ModelOption

if TYPE_CHECKING:
    from herd.text.tokenizer import Tokenizer

app = typer.Typer(help="Train a tokenizer, or see what one does.", no_args_is_help=True, rich_markup_mode=None)


def _tokenizer(model: str | None) -> Tokenizer:
    from herd.checkpoint.resolve import load_checkpoint_tokenizer, resolve_model
    from herd.text.tokenizer import load_tokenizer

    path = resolve_model(settings.value("model", model))
    if path.is_file() and path.suffix != ".gguf":
        return load_tokenizer(path)
    return load_checkpoint_tokenizer(path)


@app.command("train")
def train(
    files: Annotated[list[Path], typer.Argument(help="Text or JSON-lines files (.txt, .jsonl, also .gz and .zst), or folders of them.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write tokenizer.model and tokenizer.json into.")],
    vocab_size: Annotated[int, typer.Option(help="Base tokens; the 256 special ones come on top.")] = 32768,
    min_frequency: Annotated[int, typer.Option(help="Pairs seen less often are not merged.")] = 2,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is at --output.")] = False,
) -> None:
    """Train a byte-level BPE tokenizer with Llama 3's split rule and special tokens."""
    from herd.base.atomic import atomic_directory
    from herd.cli.output import note
    from herd.text.bpe_train import train_bpe

    with atomic_directory(output, overwrite=overwrite) as folder:
        tokenizer = train_bpe(_texts(files), vocab_size, progress=True, min_frequency=min_frequency)
        tokenizer.save(folder)
    note(f"wrote {tokenizer.num_base:,} + {len(tokenizer.special_tokens)} tokens to {output}")


def _texts(files: list[Path]) -> Iterator[str]:
    from herd.base.errors import NotFoundError
    from herd.data.records import read_records
    from herd.recipes.sources import record_text

    endings = (".txt", ".md", ".jsonl", ".txt.gz", ".jsonl.gz", ".txt.zst", ".jsonl.zst")
    for file in files:
        if not file.exists():
            raise NotFoundError(f"there is no file at {file}", hint="check the path")
        members = sorted(path for path in file.rglob("*") if path.name.endswith(endings)) if file.is_dir() else [file]
        for member in members:
            yield from map(record_text, read_records(member))


@app.command("encode")
def encode(
    text: Annotated[str | None, typer.Argument(help="The text. - or none reads it from stdin.")] = None,
    model: ModelOption = None,
    bos: Annotated[bool, typer.Option("--bos", help="Put <|begin_of_text|> first.")] = False,
    specials: Annotated[bool, typer.Option("--specials", help="Take the names of special tokens in the text for the tokens.")] = False,
    json: JsonOption = False,
) -> None:
    """Print the token ids of a text, or with --json each id with its bytes."""
    from herd.cli.output import line, print_json
    from herd.cli.stdin import argument_or_stdin

    content = argument_or_stdin(text, "text", example='herd tokenizer encode "some text"')
    tokenizer = _tokenizer(model)
    ids = tokenizer.encode(content, bos=bos, allowed_special="all" if specials else ())
    if json:
        tokens = [tokenizer.token_bytes(token_id).decode("utf-8", "backslashreplace") for token_id in ids]
        print_json({"token_ids": ids, "tokens": tokens, "num_tokens": len(ids), "num_bytes": len(content.encode("utf-8", "replace"))})
        return
    line(" ".join(str(token_id) for token_id in ids))


@app.command("decode")
def decode(
    ids: Annotated[list[int] | None, typer.Argument(help="Token ids. None reads them from stdin.")] = None,
    model: ModelOption = None,
    json: JsonOption = False,
) -> None:
    """Print the text of token ids."""
    from herd.base.errors import UsageError
    from herd.cli.output import line, print_json
    from herd.cli.stdin import argument_or_stdin

    try:
        numbers = ids or [
            int(part)
            for part in argument_or_stdin(None, "list of token ids", example="herd tokenizer decode 72 105").replace(",", " ").split()
        ]
    except ValueError as error:
        raise UsageError(f"not a list of token ids: {error}", hint="give whole numbers, as `herd tokenizer encode` prints them") from error
    text = _tokenizer(model).decode(numbers)
    if json:
        print_json({"text": text, "num_tokens": len(numbers)})
        return
    line(text)
