"""Stages that look at the whole corpus: each shard is signed, the signatures are searched, and every shard drops what was found."""
