"""A checkpoint whose residual stream and heads are rotated, so that no single input sticks out: same model, easier to round.

    residual:  E -> E R;  W -> W diag(g) R for what reads it through a norm g (which becomes 1);  W -> R^T W for what writes to it
    v and o:   every head's values are rotated by Q, which o undoes

R is Q_p (x) a random Hadamard matrix; Q a Hadamard matrix. QuaRot (arXiv 2404.00456) and SpinQuant (arXiv 2405.16406), their rotations R1
and R2, which cost nothing at run time; neither the learnt form nor the rotations inside a block (R3, R4) are here. The final norm's weight
moves into the head, so a tied head is tied no more. A `TensorSource` like any other. Shapes: D model dim, H head dim.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import TracebackType

import torch
from jaxtyping import Float
from torch import Tensor

from herd.checkpoint.source import Format, TensorInfo, TensorSource

_EMBEDDING, _HEAD, _NORM = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"
_READERS = {
    "self_attn.q_proj.weight": "input_layernorm.weight",
    "self_attn.k_proj.weight": "input_layernorm.weight",
    "self_attn.v_proj.weight": "input_layernorm.weight",
    "mlp.gate_proj.weight": "post_attention_layernorm.weight",
    "mlp.up_proj.weight": "post_attention_layernorm.weight",
}


def _cosines(size: int) -> Tensor:
    """The orthonormal matrix of the discrete cosine transform, for what is no power of two."""
    index = torch.arange(size, dtype=torch.float64)
    matrix = torch.cos(torch.pi / size * (index[None] + 0.5) * index[:, None]) * (2.0 / size) ** 0.5
    matrix[0] /= 2.0**0.5
    return matrix


def _hadamard(size: int) -> Tensor:
    """Sylvester's matrix of a power of two, orthonormal."""
    matrix = torch.ones(1, 1, dtype=torch.float64)
    while len(matrix) < size:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)]) / 2.0**0.5
    return matrix


def rotation(size: int, *, seed: int | None) -> Float[Tensor, "D D"]:
    """An orthogonal matrix that spreads every input over all: Hadamard where the size allows, signs drawn from the seed."""
    power = size & -size
    matrix = torch.kron(_cosines(size // power), _hadamard(power))
    if seed is not None:
        signs = torch.randint(0, 2, (size,), generator=torch.Generator().manual_seed(seed)).double() * 2 - 1
        matrix = signs[:, None] * matrix
    return matrix.float()


class RotatedSource:
    """Another source, rotated; tensors are float32 and come one at a time."""

    def __init__(self, source: TensorSource, *, seed: int = 0) -> None:
        self._source, self.path = source, source.path
        self.format: Format = source.format
        self.config = replace(source.config, tie_word_embeddings=False)
        self._residual = rotation(self.config.hidden_size, seed=seed)
        self._head_rotation = rotation(self.config.head_dim, seed=None)
        some = next(iter(source.tensors.values()))
        shapes = self.config.parameter_shapes()
        self.tensors: Mapping[str, TensorInfo] = {
            name: replace(source.tensors.get(name, some), shape=shape, dtype=torch.float32, stored="F32") for name, shape in shapes.items()
        }

    def read(self, name: str) -> Tensor:
        """One tensor, float32."""
        if name in (_EMBEDDING, _HEAD):
            return self._vocabulary(name)
        if name.endswith("norm.weight"):
            return torch.ones_like(self._source.read(name).float())
        prefix, _, leaf = name.partition("self_attn.") if "self_attn." in name else name.partition("mlp.")
        leaf = name[len(prefix) :]
        weight = self._source.read(name).float()
        if leaf in _READERS:
            weight = (weight * self._source.read(prefix + _READERS[leaf]).float()) @ self._residual
        if leaf == "self_attn.v_proj.weight":
            heads = weight.view(-1, self.config.head_dim, weight.shape[1])
            weight = torch.einsum("nhd,hk->nkd", heads, self._head_rotation).reshape(weight.shape)
        if leaf == "self_attn.o_proj.weight":
            weight = (weight.view(len(weight), -1, self.config.head_dim) @ self._head_rotation).reshape(weight.shape)
        return weight if leaf in _READERS else self._residual.t() @ weight

    def _vocabulary(self, name: str) -> Tensor:
        tied = self._source.config.tie_word_embeddings
        weight = self._source.read(_EMBEDDING if tied else name).float()
        if name == _HEAD:
            weight = weight * self._source.read(_NORM).float()
        return weight @ self._residual

    def close(self) -> None:
        """Close the source beneath."""
        self._source.close()

    def __enter__(self) -> RotatedSource:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
