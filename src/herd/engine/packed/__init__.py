"""Packed weights: as the kernels read them, in memory and in a file that is mapped rather than read."""
