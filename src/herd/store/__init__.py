"""What herd keeps: a database (SQLite or PostgreSQL), bytes beside it, vectors and words to search by.

Knows rows and bytes. Knows no HTTP, no model and no tool: who asks is an `owner`, a plain text, and every function takes one. An object of
another owner does not exist.

How another package adds tables:

1. a file `store/tables/FAMILY.py` with its rows, of `tables.base.Base` (and `Owned`); every module of that folder is found by itself;
2. one revision `store/migrations/versions/vNNNN_FAMILY.py` with `revision = "NNNN"` and `down_revision` the number before it.
   Order is linear: 0001 files and batches, 0002 vector stores, 0003 conversations and responses, 0004 agents,
   0005 registrations, 0006 chat completions, 0007 pgvector, 0008 chats of the page;
3. a file `store/FAMILY.py` with functions over them (`database.read()`, `database.write()`, `paging.page_of`).
"""
