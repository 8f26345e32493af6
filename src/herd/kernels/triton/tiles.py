"""The tiles of products: a pure function of a matrix's own shape, never of how many rows meet it.

A tile of 64 rows is one group of a Hopper GPU's tensor instruction, so one row costs what 64 do in arithmetic, and by the data sheets that
still hides behind the read of the weights: 64 rows by 16 bits are 64 operations a byte, where an H200 has 200 and an H100 300 of them. A
matrix of few outputs is cut along its inputs as well, so that enough programs keep the memory busy; parts are added in ascending order.
"""

from __future__ import annotations

from dataclasses import dataclass

ROWS = 64
_PROGRAMS = 256
"""Programs that are wanted: about two for each multiprocessor of the GPUs that this is for."""
_LEAST_INPUTS = 512


@dataclass(frozen=True, kw_only=True, slots=True)
class Tile:
    """Outputs of a program, inputs of a step of its loop, and parts along the inputs, each of `part` inputs but the last."""

    outputs: int
    inputs: int
    splits: int
    part: int


def tile_of(num_outputs: int, num_inputs: int, *, bits: int, group: int | None = None) -> Tile:
    """The tile of a matrix [N, K]; `group` is the width of its scales where a row has several."""
    outputs = 128 if num_outputs >= 8192 else 64
    inputs = min(128, group) if group is not None else {32: 32, 16: 64}.get(bits, 128)
    steps = -(-num_inputs // inputs)
    splits = 1
    while -(-num_outputs // outputs) * splits < _PROGRAMS and num_inputs >= 2 * splits * _LEAST_INPUTS:
        splits *= 2
    part = -(-steps // splits) * inputs
    return Tile(outputs=outputs, inputs=inputs, splits=-(-num_inputs // part), part=part)
