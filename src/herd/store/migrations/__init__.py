"""Alembic's revisions, applied by `store.migrate`."""
