"""The model family: one definition that trains, evaluates and serves. Knows token ids, never messages."""
