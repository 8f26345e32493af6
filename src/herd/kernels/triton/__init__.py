"""The ops of a serving engine for GPUs, in Triton: the same ops, layouts and rounding points as the C kernels beside it, one a file.

The law of `herd.kernels` holds here by construction: tiles, splits and their order follow from the shapes of weights and heads alone, never
from how many rows a batch has, so a row's result is the same alone, in a chunk and in a batch. Nothing is tuned at run time, since a tuner
would choose another order of summation for another batch. Launches pass `enable_fp_fusion=False`, so that no compiler joins a product and a
sum that two kernels are to round alike.

Without a GPU the kernels run on CPU tensors in Triton's interpreter, where TRITON_INTERPRET=1 is set before triton is imported: that is how
they are tested against the torch references. Nothing here imports triton until a module of this package is imported.

Reading order: `numbers` (what kernels share), `norm`, `swiglu`, `rope`, `attention`, `tiles`, `linear`, `draw`; `runtime`: where they run.
"""
