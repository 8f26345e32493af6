"""Records of a Parquet file: a row each, a batch of rows in memory at a time. Knows the format by pyarrow."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from herd.base.errors import FormatError
from herd.data.records import Record, opened

_ROWS = 512


def read_parquet(path: Path | str) -> Iterator[Record]:
    """Every row as a record; dates become ISO text and null fields are left out. Raises FormatError on a damaged file."""
    import pyarrow
    import pyarrow.parquet

    with opened(path) as stream:
        try:
            for batch in pyarrow.parquet.ParquetFile(stream).iter_batches(batch_size=_ROWS):
                for row in batch.to_pylist():
                    yield {name: _plain(value) for name, value in row.items() if value is not None}
        except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
            raise FormatError(f"{path} is no whole Parquet file: {error}", hint="fetch the file again") from error


def _plain(value: Any) -> Any:
    return value.isoformat() if hasattr(value, "isoformat") else value
