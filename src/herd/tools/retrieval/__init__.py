"""Retrieval: files become text, text becomes passages, passages become vectors, and questions find them again.

Knows files, tokens and `herd.store`; the model that makes vectors is behind a protocol (`embedder`), so nothing here loads one.
"""
