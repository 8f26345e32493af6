"""An index of the texts in a folder, for searches without a network: SQLite's FTS5 with BM25, one file, nothing to load.

Texts are cut into passages at line ends. Words are folded without accents; scripts without spaces, such as Thai, are found by three
characters at a time. An index is written whole or not at all; building it again replaces it.
"""

from __future__ import annotations

import asyncio
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from herd.base.atomic import atomic_file
from herd.base.errors import ConfigError, NotFoundError
from herd.tools.errors import ToolError
from herd.tools.files.root import Root
from herd.tools.tool import Passage, ToolContext
from herd.tools.web.html import page_text

ENDINGS = (".txt", ".md", ".rst", ".html", ".htm", ".csv", ".json", ".jsonl", ".py", ".toml", ".yaml", ".yml")
_PASSAGE_CHARS = 900
_MAX_FILE_BYTES = 16 * 1024 * 1024
_MAX_TERMS = 32
_WORD = re.compile(r"\w+")
_FORMAT = 1


def build_index(folder: Path | str, target: Path | str) -> int:
    """Index the texts below a folder into one file; returns the number of passages. Raises NotFoundError."""
    root = Root(folder)
    with atomic_file(target) as path:
        path.unlink()
        with closing(sqlite3.connect(path)) as database:
            database.execute(f"PRAGMA user_version = {_FORMAT}")
            database.execute("CREATE TABLE passages (id INTEGER PRIMARY KEY, title TEXT, text TEXT, source TEXT)")
            database.executemany("INSERT INTO passages (title, text, source) VALUES (?, ?, ?)", _passages(root))
            for name, columns, tokenizer in (("words", "title, text", "unicode61 remove_diacritics 2"), ("threes", "text", "trigram")):
                content = "content = 'passages', content_rowid = 'id'"
                database.execute(f"CREATE VIRTUAL TABLE {name} USING fts5({columns}, {content}, tokenize = '{tokenizer}')")
                database.execute(f"INSERT INTO {name} ({name}) VALUES ('rebuild')")
            database.commit()
            count = database.execute("SELECT count(*) FROM passages").fetchone()[0]
    return int(count)


def _passages(root: Root) -> Iterator[tuple[str, str, str]]:
    for entry in root.entries(deep=True):
        if entry.is_folder or not entry.path.lower().endswith(ENDINGS) or entry.size_bytes > _MAX_FILE_BYTES:
            continue
        try:
            data, _ = root.read(entry.path, limit=_MAX_FILE_BYTES)
        except ToolError:
            continue
        text, title = data.decode("utf-8", "replace"), entry.path
        if entry.path.lower().endswith((".html", ".htm")):
            page = page_text(text, "")
            text, title = page.text, page.title or entry.path
        for number, passage in enumerate(cut_passages(text), start=1):
            yield title, passage, f"{entry.path}#{number}"


def cut_passages(text: str, limit: int = _PASSAGE_CHARS) -> Iterator[str]:
    """A text in pieces of about `limit` characters, cut at line ends where there are any. Joined they are the text but for white space."""
    piece = ""
    for line in text.splitlines():
        while len(line) > limit:
            cut = line.rfind(" ", 1, limit) if " " in line[1:limit] else limit
            if piece.strip():
                yield piece.strip()
            yield line[:cut].strip()
            piece, line = "", line[cut:]
        if len(piece) + len(line) > limit and piece.strip():
            yield piece.strip()
            piece = ""
        piece += line + "\n"
    if piece.strip():
        yield piece.strip()


class FileIndex:
    """An index by its file. Raises NotFoundError for none, ConfigError for one of another kind."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise NotFoundError(f"there is no index at {path}", hint="`herd tools index FOLDER --output FILE` makes one")
        try:
            with closing(self._open()) as database:
                version = database.execute("PRAGMA user_version").fetchone()[0]
                database.execute("SELECT count(*) FROM threes").fetchone()
        except sqlite3.DatabaseError as error:
            raise ConfigError(f"{path} is no index of herd", hint="`herd tools index` makes one") from error
        if version != _FORMAT:
            raise ConfigError(f"{path} is an index of format {version}, and {_FORMAT} is read", hint="make it again: `herd tools index`")

    def _open(self) -> sqlite3.Connection:
        return sqlite3.connect(f"file:{self.path.resolve().as_posix().replace('?', '%3f').replace('#', '%23')}?mode=ro", uri=True)

    async def retrieve(self, query: str, *, limit: int, context: ToolContext) -> list[Passage]:
        """The passages that hold the query's words, best first."""
        return await asyncio.to_thread(self.search, query, limit)

    def search(self, query: str, limit: int) -> list[Passage]:
        """`retrieve`, without an event loop."""
        query = "".join(character if character.isprintable() else " " for character in query)
        with closing(self._open()) as database:
            for table, weights, terms in (("words", "2.0, 1.0", _words(query)), ("threes", "1.0", _threes(query))):
                if not terms:
                    continue
                # Each term is a quoted string, so that nothing in a query is syntax; a passage with more of them ranks higher.
                wanted = " OR ".join('"' + term.replace('"', '""') + '"' for term in terms)
                rows = database.execute(
                    f"SELECT passages.title, passages.text, source, -bm25({table}, {weights}) AS score FROM {table} "
                    f"JOIN passages ON passages.id = {table}.rowid WHERE {table} MATCH ? ORDER BY score DESC, id LIMIT ?",
                    (wanted, limit),
                ).fetchall()
                if rows:
                    return [Passage(title=title, text=text, source=source, score=score) for title, text, source, score in rows]
        return []


def _words(query: str) -> list[str]:
    return list(dict.fromkeys(word.lower() for word in _WORD.findall(query)))[:_MAX_TERMS]


def _threes(query: str) -> list[str]:
    """The query's words cut into threes, for scripts whose words stand without spaces."""
    threes = [word[start : start + 3] for word in query.split() for start in range(len(word) - 2)]
    return list(dict.fromkeys(threes))[:_MAX_TERMS]
