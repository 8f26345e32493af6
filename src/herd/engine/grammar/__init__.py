"""Structured output: what an answer may look like, compiled to masks of the tokens that may come next.

`spec` describes a grammar, `write` and what it stands on (`schema`, `values`, `tools`, `foreign`) put it in the matcher's language,
`compiler` compiles it for a `vocabulary`, `state` holds one sequence's place in it, `pool` fills the masks of a batch beside the model.
"""
