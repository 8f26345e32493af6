"""Nearest vectors by pgvector: a column beside each chunk's bytes, and an HNSW index for each width of vectors.

The bytes of a row stay the truth, and the column follows them in the same transaction. It comes with revision 0007, or with the first
start at which the database offers the extension; without it, `vectors` keeps usearch's indexes. Stores of one width share an index, which
is looked through until enough chunks of the store were found (iterative scans, pgvector 0.8); where it gives too few, and with an older
pgvector, every chunk of the store is looked at. Scores are cosines, since vectors have length one: <#> is the negative inner product.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from herd.base.log import get_logger

log = get_logger(__name__)

MAX_INDEXED = 2_000
"""Numbers of a vector that HNSW takes; wider ones are looked at one by one."""
_LEAST = "0.8"
_PIECE = 1_000
Floats = NDArray[np.float32]


def spelled(vector: Floats) -> str:
    """A vector as pgvector reads it, every number exactly."""
    return "[" + ",".join(np.format_float_positional(value, unique=True, trim="0") for value in vector) + "]"


def adopt(connection: Connection) -> bool:
    """Add the column to the chunks and fill it, where the extension can be had; whether it is there now."""
    if connection.dialect.name != "postgresql":
        return False
    if _has_column(connection):
        return True
    if not _available(connection):
        return False
    try:
        with connection.begin_nested():
            connection.execute(text("CREATE EXTENSION IF NOT EXISTS vector"))
    except DBAPIError as error:
        log.info("pgvector is offered, but this user may not create it: %s", str(error.orig).strip()[:200])
        return False
    connection.execute(text("ALTER TABLE chunks ADD COLUMN IF NOT EXISTS embedding vector"))
    for width in _fill(connection):
        _index(connection, width)
    return True


def _available(connection: Connection) -> bool:
    return connection.execute(text("SELECT 1 FROM pg_available_extensions WHERE name = 'vector'")).scalar() is not None


def _has_column(connection: Any) -> bool:
    query = text("SELECT 1 FROM pg_attribute WHERE attrelid = to_regclass('chunks') AND attname = 'embedding' AND NOT attisdropped")
    return connection.execute(query).scalar() is not None


def _fill(connection: Connection) -> set[int]:
    """Give every chunk its vector; the widths that there are."""
    widths: set[int] = set()
    last = -1
    while True:
        query = text("SELECT number, vector FROM chunks WHERE number > :last ORDER BY number LIMIT :piece")
        rows = connection.execute(query, {"last": last, "piece": _PIECE}).all()
        if not rows:
            return widths
        values = [(number, np.frombuffer(bytes(data), dtype="<f4")) for number, data in rows]
        _set(connection, values)
        widths |= {len(vector) for _, vector in values}
        last = rows[-1][0]


def _set(connection: Any, values: Sequence[tuple[int, Floats]]) -> None:
    update = text("UPDATE chunks SET embedding = CAST(:vector AS vector) WHERE number = :number")
    connection.execute(update, [{"number": number, "vector": spelled(vector)} for number, vector in values])


def _index(connection: Any, width: int) -> None:
    """The index of one width, if there can be one and there is none."""
    if not 1 <= width <= MAX_INDEXED:
        return
    connection.execute(
        text(
            f"CREATE INDEX IF NOT EXISTS ix_chunks_embedding_{width} ON chunks USING hnsw ((embedding::vector({width})) vector_ip_ops) "
            f"WHERE vector_dims(embedding) = {width}"
        )
    )


def serves(session: Session) -> bool:
    """Whether chunks have the column. Asked of the database once for each engine."""
    engine = session.get_bind().engine
    if engine.dialect.name != "postgresql":
        return False
    known: dict[str, bool] = engine.__dict__.setdefault("_herd_pgvector", {})
    if "serves" not in known:
        known["serves"] = _has_column(session)
    return known["serves"]


def keep(session: Session, store_id: str, after: int, width: int) -> None:
    """Give the chunks of a store that came behind this number their vectors."""
    query = text("SELECT number, vector FROM chunks WHERE store_id = :store AND number > :after ORDER BY number")
    rows = session.execute(query, {"store": store_id, "after": after}).all()
    if rows:
        _set(session, [(number, np.frombuffer(bytes(data), dtype="<f4")) for number, data in rows])
        _index(session, width)


def nearest(
    session: Session, store_id: str, query: Floats, limit: int, allowed: Sequence[int] | None = None, *, exact: bool = False
) -> list[tuple[int, float]]:
    """Numbers and cosines of a store's nearest chunks, of the same cosine the smaller number first. `exact` looks at every one."""
    width = len(query)
    values: dict[str, Any] = {"store": store_id, "query": spelled(query), "limit": limit}
    rows: Sequence[Any] = ()
    if allowed is None and not exact and width <= MAX_INDEXED and _iterates(session):
        session.execute(text("SET LOCAL hnsw.iterative_scan = strict_order"))
        session.execute(text(f"SET LOCAL hnsw.ef_search = {max(40, min(1000, 2 * limit))}"))
        rows = session.execute(text(statement(width, indexed=True, some=False)), values).all()
    if len(rows) < limit:
        more = {} if allowed is None else {"allowed": list(allowed)}
        rows = session.execute(text(statement(width, indexed=False, some=allowed is not None)), values | more).all()
    return sorted(((int(number), float(score)) for number, score in rows), key=lambda one: (-one[1], one[0]))


def statement(width: int, *, indexed: bool, some: bool) -> str:
    """The query: by the index of this width, or over every chunk of the store, or over some of them."""
    column = f"embedding::vector({width})"
    # An expression that no index is of keeps a planner from an index that would miss chunks of a small store.
    distance = f"({column} <#> CAST(:query AS vector({width})))" if indexed else f"(({column} <#> CAST(:query AS vector({width}))) + 0)"
    where = [f"store_id = :store AND vector_dims(embedding) = {width}"]
    if some:
        where.append("number = ANY(:allowed)")
    tail = "" if indexed else ", number"
    return f"SELECT number, -{distance} FROM chunks WHERE {' AND '.join(where)} ORDER BY {distance}{tail} LIMIT :limit"


def _iterates(session: Session) -> bool:
    """Whether the extension goes on looking where the first candidates are of other stores."""
    known: dict[str, bool] = session.get_bind().engine.__dict__.setdefault("_herd_pgvector", {})
    if "iterates" not in known:
        version = session.execute(text("SELECT extversion FROM pg_extension WHERE extname = 'vector'")).scalar() or "0"
        parts = [int(part) for part in version.split(".")[:2]]
        known["iterates"] = parts >= [int(part) for part in _LEAST.split(".")]
    return known["iterates"]
