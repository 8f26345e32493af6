"""What some files hold, at a glance: records, fields, languages, lengths, damaged places. Knows nothing of tokens."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from herd.base.errors import FormatError, HerdError
from herd.data.records import read_records, to_messages
from herd.data.stages.language import identify
from herd.data.stages.routes import route_of
from herd.data.stages.stage import size_of

_LOOKED_AT = 200


def inspect_files(files: Sequence[str], *, samples: int = 3) -> dict[str, Any]:
    """Figures over all records of some files. Languages and routes are told of the first 200 records of every file."""
    fields: Counter[str] = Counter()
    languages: Counter[str] = Counter()
    routes: Counter[str] = Counter()
    sizes: list[int] = []
    shown: list[str] = []
    damaged: dict[str, str] = {}
    num_dialogues = 0
    for file in files:
        try:
            for number, record in enumerate(read_records(file)):
                fields.update(record.keys())
                text = record.get("text")
                if not isinstance(text, str):
                    text = _dialogue(record)
                    num_dialogues += text is not None
                sizes.append(size_of({"text": text or ""}))
                if text and number < _LOOKED_AT:
                    languages[str(record.get("lang") or identify(text)[0] or "?")] += 1
                    routes[route_of(text)] += 1
                    if len(shown) < samples:
                        shown.append(text[:280])
        except FormatError as error:
            damaged[file] = error.message
    sizes.sort()
    return {
        "files": len(files),
        "records": len(sizes),
        "dialogues": num_dialogues,
        "bytes": sum(sizes),
        "bytes_median": sizes[len(sizes) // 2] if sizes else 0,
        "bytes_largest": sizes[-1] if sizes else 0,
        "fields": dict(fields.most_common()),
        "languages": dict(languages.most_common()),
        "routes": dict(routes.most_common()),
        "damaged": damaged,
        "samples": shown,
    }


def _dialogue(record: dict[str, Any]) -> str | None:
    try:
        return "\n".join(f"{turn['role']}: {turn['content']}" for turn in to_messages(record))
    except HerdError:
        return None
