"""What the server keeps over a restart: `herd.store` opened, with the files and batches of its routes and what a crash left swept away."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

from sqlalchemy import select

from herd.base.log import get_logger
from herd.store.batches import Batches
from herd.store.database import Database
from herd.store.files import Files
from herd.store.state import State
from herd.store.tables.batches import BatchRow
from herd.store.tables.files import FileRow
from herd.store.vector_stores import VectorStores
from herd.store.vectors import Vectors
from herd.tools.retrieval.embedder import Embedder
from herd.tools.retrieval.service import Retrieval

__all__ = ["BatchRow", "FileRow", "Storage"]

log = get_logger(__name__)


class Storage:
    """The state of one server. Raises ConfigError where it cannot be used.

    Every row has an owner, and no one finds another's: an id that is not yours does not exist. Methods are short, and for any thread.
    """

    def __init__(self, folder: Path, *, database_url: str | None = None, files_url: str | None = None) -> None:
        self.state = State(folder, database_url=database_url, files_url=files_url)
        self.folder = folder
        try:
            self.vector_stores = VectorStores(self.state)
            self.files = Files(self.state, on_delete=[self.vector_stores.forget_file])
            self.vectors = Vectors(self.state.indexes_dir)
            self.batches = Batches(self.state)
            self.sweep()
        except BaseException:
            self.state.close()
            raise

    @property
    def database(self) -> Database:
        """Where rows are."""
        return self.state.database

    def named_blobs(self) -> set[str]:
        """Ids of all bytes that are somebody's: of files, and of what an open batch is about to write."""
        named = {name for batch in self.batches.open() for name in (batch.output_file_id, batch.error_file_id) if name}
        with self.database.read() as session:
            return named | set(session.scalars(select(FileRow.id)))

    def sweep(self) -> None:
        """Remove bytes that no row names: uploads that a crash cut short."""
        self.files.expire()
        count = self.state.blobs.sweep(self.named_blobs())
        self.vectors.sweep(self.vector_stores.ids())
        if count:
            log.info("%d uploads that a crash cut short are removed", count)

    def retrieval(self, embedder: Embedder) -> Retrieval:
        """Vector stores, with a model that makes their vectors."""
        return Retrieval(self.state, self.files, embedder, vectors=self.vectors)

    def close(self) -> None:
        """Let go of the directory."""
        self.state.close()

    def staged_path(self, file_id: str) -> Path:
        """Where to write the bytes of a file to be."""
        return self.state.blobs.staged(file_id)

    def file_path(self, file_id: str) -> Path:
        """Where a file's bytes are, where files are kept in a folder."""
        path = self.state.blobs.path(file_id)
        assert path is not None, "files are kept elsewhere"
        return path

    def open_file(self, file_id: str) -> BinaryIO:
        """The bytes of a file."""
        return self.files.open(file_id)

    def lines_path(self, batch_id: str, kind: str) -> Path:
        """Where the lines of an open batch are written: `output` or `error`."""
        return self.state.batches_dir / f"{batch_id}.{kind}.jsonl"

    def add(self, row: FileRow | BatchRow) -> None:
        """Keep a new row."""
        if isinstance(row, FileRow):
            self.files.add(row)
        else:
            self.batches.add(row)
