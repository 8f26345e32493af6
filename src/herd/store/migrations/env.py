"""How Alembic runs the revisions: over the connection and in the transaction that `store.migrate` hands it."""

from __future__ import annotations

from alembic import context

from herd.store.tables import Base, load

load()
context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    # SQLite's own DDL is transactional, and the transaction was begun by us: a crash in the middle leaves the schema as it was.
    transactional_ddl=True,
    transaction_per_migration=False,
    render_as_batch=False,
)
context.run_migrations()
