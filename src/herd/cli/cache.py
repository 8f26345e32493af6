"""`herd cache`: the packed weights that make a second start quick, listed and deleted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from herd.cli.load import JsonOption

if TYPE_CHECKING:
    from herd.engine.packed.listing import Kept

app = typer.Typer(help="Packed weights, kept for the next start: list, prune, clear.", no_args_is_help=True)

DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Only say what would be deleted.")]
_DAY_S = 86_400.0


@app.command("list")
def list_kept(json: JsonOption = False) -> None:
    """List what is kept: model, size, when it was last used, and why it will not be used again where it is stale."""
    from herd.base.memory import gib
    from herd.cli.output import note, print_json, table
    from herd.engine.packed.listing import kept
    from herd.engine.packed.names import limit_bytes, packed_dir

    found, limit = kept(), limit_bytes()
    total = sum(item.size_bytes for item in found)
    if json:
        print_json({"folder": str(packed_dir()), "limit_bytes": limit, "size_bytes": total, "files": [_told(item) for item in found]})
        return
    rows = [(item.model, gib(item.size_bytes), _age(item.used_s_ago), item.stale or "ready", item.folder or "") for item in found]
    table(rows, ("model", "size", "last used", "state", "made of"))
    note(f"{gib(total)} of {gib(limit)} in {packed_dir()}; herd cache prune deletes what is stale, herd cache clear all of it")


@app.command("prune")
def prune(
    older_than: Annotated[
        float | None, typer.Option("--older-than", min=0.0, help="Delete what was not used for so many days too.")
    ] = None,
    to: Annotated[
        float | None, typer.Option("--to", min=0.0, help="Keep at most so many GiB; what was used longest ago goes first.")
    ] = None,
    dry_run: DryRunOption = False,
    json: JsonOption = False,
) -> None:
    """Delete what will not be used again: damaged, of another herd, or of a checkpoint that is gone."""
    from herd.engine.packed.listing import chosen, kept

    gone = chosen(
        kept(),
        older_than_s=None if older_than is None else older_than * _DAY_S,
        most_bytes=None if to is None else int(to * 2**30),
    )
    _delete(gone, dry_run=dry_run, json=json)


@app.command("clear")
def clear(dry_run: DryRunOption = False, json: JsonOption = False) -> None:
    """Delete all packed weights; the next start of each model packs them anew."""
    from herd.engine.packed.listing import kept

    _delete(kept(), dry_run=dry_run, json=json)


def _delete(gone: list[Kept], *, dry_run: bool, json: bool) -> None:
    from herd.base.memory import gib
    from herd.cli.output import line, note, print_json
    from herd.engine.packed.listing import delete

    freed = sum(item.size_bytes for item in gone) if dry_run else delete(gone)
    if json:
        print_json({"deleted": [] if dry_run else [_told(item) for item in gone], "would_delete": len(gone), "size_bytes": freed})
        return
    for item in gone:
        line(f"{item.model}  {gib(item.size_bytes)}  {item.stale or f'last used {_age(item.used_s_ago)}'}")
    word = "would be deleted" if dry_run else "deleted"
    note(f"{len(gone)} file{'s' if len(gone) != 1 else ''}, {gib(freed)} {word}")


def _told(item: Kept) -> dict[str, Any]:
    return {
        "name": item.name,
        "model": item.model,
        "folder": item.folder,
        "dtype": item.dtype,
        "size_bytes": item.size_bytes,
        "used_s_ago": round(item.used_s_ago, 1),
        "stale": item.stale or None,
    }


def _age(seconds: float) -> str:
    """In the largest unit that is full."""
    for size, unit in ((_DAY_S, "day"), (3600.0, "hour"), (60.0, "minute")):
        if seconds >= size:
            count = int(seconds // size)
            return f"{count} {unit}{'s' if count != 1 else ''} ago"
    return "just now"
