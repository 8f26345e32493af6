"""The ops of a CPU serving engine, one a file: a plain torch reference, which is the oracle, and a C implementation (`csrc/`).

The law of every op, in both implementations: a row's result depends on that row alone. It is the same, bit for bit, whatever else is in the
batch, wherever the row stands in it, however a prompt was cut into chunks and however many threads work. Knows tensors, never a model.

Reading order: `linear`, `norm`, `swiglu`, `rope`, `batch`, `attention` are ops; `dispatch` chooses, `library` binds C, `build` compiles.
"""
