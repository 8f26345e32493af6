"""The GPU runner: the CPU runner's steps by Triton kernels, with captured graphs for decoding. `device` is all that speaks to CUDA.

Reading order: `weights` (what is multiplied), `layout` (a step's numbers as one copy), `buffers` (what is allocated), `forward` (the
blocks), `graphs` (captured steps), `runner`; `plan` counts the bytes.
"""
