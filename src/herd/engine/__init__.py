"""The engine: many sequences at once over one model and one paged cache. Token ids in, token ids out."""
