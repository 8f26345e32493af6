"""herd beside its peers, in one run: `python -m benchmarks.tokenizer`, `python -m benchmarks.load`; each takes `--json FILE`."""
