"""The part of a Llama that one rank has, with the names of the whole: chunks of layers, matrices cut over ranks, parameters shared by FSDP.

A rank's `ShardedTransformer` is a `Transformer` that lacks what other pipeline stages have; its parameters are DTensors where they are cut.
What runs are its chunks (`Chunk`), one for each virtual stage: tokens or hidden states in, hidden states out, in slices of the sequence.
The same blocks as everywhere; the planner (`plan.pipeline`) says which. Shapes: B batch, T tokens, C this rank's of them, D model dim.
"""

from __future__ import annotations

import warnings
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from herd.base.errors import ConfigError
from herd.kernels.torch_compat import local_tensor, sum_gradients
from herd.model.attention import AttentionCore
from herd.model.block import Block
from herd.model.config import ModelConfig
from herd.model.init import initial_values
from herd.model.linear import Linear
from herd.model.norm import RMSNorm
from herd.model.rope import rope_frequencies, rope_table
from herd.model.transformer import Transformer, call_block
from herd.plan.pipeline import stages
from herd.train.attention import training_core
from herd.train.parallel import tensor as tp
from herd.train.parallel.config import ParallelConfig
from herd.train.parallel.context import context_core, local_positions
from herd.train.parallel.mesh import RankMesh
from herd.train.parallel.pieces import box_of


def chunk_layers(config: ModelConfig, parallel: ParallelConfig) -> list[range]:
    """The layers of every chunk of the pipeline, in the order of the model; chunk c is rank c mod pp's."""
    parts, count = stages(config, parallel.mesh), parallel.pp * parallel.virtual_stages
    sizes = [parts[chunk % parallel.pp].chunks[chunk // parallel.pp] for chunk in range(count)]
    ends = [sum(sizes[: chunk + 1]) for chunk in range(count)]
    return [range(end - size, end) for size, end in zip(sizes, ends, strict=True)]


class Chunk(nn.Module):
    """Consecutive layers, with the embedding before the first and the norm after the last; the head only lends its weight."""

    def __init__(self, owner: ShardedTransformer, index: int, layers: range) -> None:
        super().__init__()
        self.index, self.is_first, self.is_last = index, index == 0, index == owner.num_chunks - 1
        # In a tuple, so that the owner does not become a part of its part.
        self._owner = (owner,)
        self.layers = nn.ModuleList(owner.block(layer) for layer in layers)
        self.embed_tokens = owner.model.embed_tokens if self.is_first or (self.is_last and owner.lm_head is None) else None
        self.norm = owner.model.norm if self.is_last else None
        self.lm_head = owner.lm_head if self.is_last else None

    def forward(self, x: Tensor, documents: Tensor) -> Tensor:
        """Tokens [B, C] for the first chunk, else hidden states [B, C / TP, D]; `documents` [B, T] are those of the whole row."""
        owner = self._owner[0]
        rope = owner.rope(documents.shape[1], x.device)
        core = owner.core(documents)
        with torch.autocast(owner.device.type, owner.compute_dtype, enabled=owner.compute_dtype != torch.float32):
            if self.is_first:
                x = cast("nn.Embedding", self.embed_tokens)(x)
            elif owner.mesh.config.tp > 1:
                x = tp.enter(x, owner.mesh.submesh("tp"))
            for block in self.layers:
                x = owner.block_runner(cast("Block", block), x, rope, core)
            if self.norm is not None:
                x = self.norm(x)
        return tp.leave(x)

    @property
    def head_weight(self) -> Tensor:
        """This rank's rows of the output matrix."""
        weight = cast("Any", self.embed_tokens if self.lm_head is None else self.lm_head).weight
        return tp.slice_of(weight)


class ShardedTransformer(Transformer):
    """What one rank of a mesh has of a model. Built on the meta device; `fill` gives it values."""

    model: Any
    _chunks: list[Chunk]

    def __init__(self, config: ModelConfig, mesh: RankMesh, *, compute_dtype: torch.dtype = torch.float32, build_on: str = "meta") -> None:
        nn.Module.__init__(self)
        mesh.config.check(config)
        self.config, self.mesh, self.compute_dtype = config, mesh, compute_dtype
        self.block_runner = call_block
        self._frequencies = None
        self._ropes: dict[tuple[int, torch.device], tuple[Tensor, Tensor]] = {}
        ranges = chunk_layers(config, mesh.config)
        self.num_chunks = len(ranges)
        mine = list(enumerate(ranges))[mesh.place["pp"] :: mesh.config.pp]
        self.has_embedding, self.has_head = mine[0][0] == 0, mine[-1][0] == self.num_chunks - 1
        with torch.device(build_on):
            self._build([layer for _, layers in mine for layer in layers])
        self.chunks = [Chunk(self, index, layers) for index, layers in mine]

    def _build(self, layers: list[int]) -> None:
        """The modules of this rank, under the names that they have in the whole model."""
        config = self.config
        self.model = nn.Module()
        needs_matrix = self.has_embedding or (self.has_head and config.tie_word_embeddings)
        self.model.embed_tokens = (
            nn.Embedding.from_pretrained(torch.empty(config.vocab_size, config.hidden_size), freeze=False) if needs_matrix else None
        )
        # A ModuleList with gaps: layers keep the numbers that they have in the whole model.
        blocks = nn.ModuleList()
        for layer in layers:
            blocks.add_module(str(layer), Block(config, layer))
        self.model.layers = blocks
        self.model.norm = RMSNorm(config.hidden_size, config.rms_norm_eps) if self.has_head else None
        self.lm_head = Linear(config.hidden_size, config.vocab_size) if self.has_head and not config.tie_word_embeddings else None

    @property
    def chunks(self) -> list[Chunk]:
        """The chunks, in the order of the model."""
        return self._chunks

    @chunks.setter
    def chunks(self, chunks: list[Chunk]) -> None:
        # Not registered: their modules are the model's own.
        object.__setattr__(self, "_chunks", chunks)

    def block(self, layer: int) -> Block:
        """A layer by its number in the whole model."""
        return cast("Block", self.model.layers.get_submodule(str(layer)))

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.mesh.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the masters."""
        return torch.float32

    @property
    def stream_dtype(self) -> torch.dtype:
        """The dtype of the residual stream: FSDP's copy of the parameters is in the compute dtype, masters alone are float32."""
        return self.compute_dtype if self.mesh.is_sharded else torch.float32

    @property
    def last_chunk(self) -> Chunk | None:
        """The chunk with the head, on the ranks that have it."""
        return self.chunks[-1] if self.has_head else None

    def rope(self, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """The rotations of this rank's places in a row."""
        key = (length, device)
        if key not in self._ropes:
            config, place = self.mesh.config, self.mesh.place
            positions = local_positions(length, config.cp, place["cp"], device)[None]
            self._ropes = {key: rope_table(positions, rope_frequencies(self.config, device))}
        return self._ropes[key]

    def core(self, documents_BT: Tensor) -> AttentionCore:
        """What mixes the tokens of rows with these documents."""
        config = self.mesh.config
        if config.cp == 1:
            return training_core(documents_BT)
        return context_core(documents_BT, group=self.mesh.group("cp"), ranks=config.cp, rank=self.mesh.place["cp"])

    def set_config(self, config: ModelConfig) -> None:
        """Go on with another context length or other rotations; the weights stay."""
        self.config = config
        self._ropes = {}

    def split(self) -> ShardedTransformer:
        """Cut the matrices over tensor parallel ranks and share the parameters of each block; returns the model."""
        mesh = self.mesh
        if mesh.config.tp > 1:
            self._split_tensors(mesh.submesh("tp"))
        if mesh.is_sharded:
            self._share()
        return self

    def _split_tensors(self, mesh: Any) -> None:
        for block in self.model.layers:
            tp.split_block(block, mesh)
        if self.model.embed_tokens is not None:
            tp.split_embedding(self.model.embed_tokens, mesh)
        if self.model.norm is not None:
            tp.split_norm(self.model.norm, mesh)
        if self.lm_head is not None:
            tp.split_head(self.lm_head, mesh)

    def _share(self) -> None:
        """One FSDP unit for each block and one for the ends. Rotations are float32 in every dtype, so inputs are not cast."""
        narrow = None if self.compute_dtype == torch.float32 else self.compute_dtype
        policy = MixedPrecisionPolicy(param_dtype=narrow, reduce_dtype=torch.float32, cast_forward_inputs=False)
        settings: dict[str, Any] = {"mesh": self.mesh.fsdp_mesh, "mp_policy": policy}
        for chunk in self.chunks:
            for block in chunk.layers:
                fully_shard(block, reshard_after_forward=self.mesh.config.zero == 3, **settings)
            # The ends stay together until their backward is over: the loss reads the head's weight after the forward.
            fully_shard(chunk, reshard_after_forward=False, **settings)
            for module in (chunk, *chunk.layers):
                sum_gradients(module)
        # A chunk's output is a view of a DTensor's slice; nothing writes into it.
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view", category=UserWarning)

    @torch.no_grad()
    def fill(self, *, seed: int) -> ShardedTransformer:
        """Allocate the parameters and give them their first values: functions of the seed and the name alone. Returns the model."""
        self.to_empty(device=self.device)
        for name, parameter in self.named_parameters():
            whole = initial_values(self.config, name, parameter.shape, seed=seed)
            local_tensor(parameter).copy_(whole[box_of(parameter).slices])
        return self

    @torch.no_grad()
    def hidden(self, tokens_BT: Tensor, *, core: AttentionCore | None = None, positions_BT: Tensor | None = None) -> Tensor:
        """Final hidden states of whole rows, on every rank, which all call this with the same tokens: for scores that need few rows.

        Raises ConfigError for a core or positions: on a mesh rows are single documents from position 0.
        """
        from herd.train.parallel.whole import whole_hidden  # it is made of this class

        if core is not None or positions_BT is not None:
            raise ConfigError("on a mesh hidden states are those of whole rows", hint="give neither core nor positions")
        return whole_hidden(self, tokens_BT)

    @torch.no_grad()
    def logits(self, hidden: Tensor) -> Tensor:
        """Float32 logits of hidden states, on every rank; all call this together."""
        from herd.train.parallel.whole import whole_logits

        return whole_logits(self, hidden)

    def forget_gathered(self) -> None:
        """Drop gathered parameters that a forward without backward left behind: they are stale after the next update."""
        if self.mesh.is_sharded:
            for chunk in self.chunks:
                for module in (chunk, *chunk.layers):
                    cast("Any", module).reshard()


def build_sharded(config: ModelConfig, mesh: RankMesh, *, seed: int, compute_dtype: torch.dtype = torch.float32) -> ShardedTransformer:
    """This rank's part of a model with its first values."""
    return ShardedTransformer(config, mesh, compute_dtype=compute_dtype).split().fill(seed=seed)
