"""Training memory of every pipeline rank, item by item, in closed form. Ranks of the other dimensions have the same as their pipeline rank.

What each item is:
    parameters   the copy that computes: whole on the rank under ZeRO-0 to 2, a slice of nothing but its masters under 3
    gradients    sums in the gradient's dtype: whole under ZeRO-0 and 1; under 2 and 3 a slice, and the chunk (layer) in work whole, twice,
                 since one is reduced while the next is summed
    optimizer    master and moments, a slice under ZeRO-1 to 3
    activations  chunks in flight x what their layers keep (`activations.py`)
    logits       of `loss_rows` tokens, and the gradients that herd's loss forms at once: of the hidden states and of the output matrix
    buffers      the layer in work, gathered keys and values, parameters that ZeRO-3 gathers, what the pipeline sends and receives
    reserve      not for tensors: `Assumptions.reserve_gb`
"""

from __future__ import annotations

from dataclasses import dataclass

from herd.model.config import ModelConfig
from herd.plan.activations import layer_bytes, working_bytes
from herd.plan.assumptions import Assumptions
from herd.plan.mesh import Batch, Mesh
from herd.plan.pipeline import Stage, in_flight, stages
from herd.plan.precision import STATE_BYTES

ITEMS = ("parameters", "gradients", "optimizer", "activations", "logits", "buffers", "reserve")


@dataclass(frozen=True, kw_only=True, slots=True)
class RankMemory:
    """Bytes of one pipeline rank's devices."""

    rank: int
    num_layers: int
    num_parameters: int
    in_flight: int
    parameters: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    buffers: int
    reserve: int

    @property
    def total(self) -> int:
        """Everything."""
        return self.parameters + self.gradients + self.optimizer + self.activations + self.logits + self.buffers + self.reserve

    def items(self) -> dict[str, int]:
        """Bytes by item."""
        return {name: getattr(self, name) for name in ITEMS}


def layer_parameters(config: ModelConfig, tp: int) -> int:
    """Parameters of one layer on a tensor-parallel rank: matrices are split, norms are not."""
    return (config.num_parameters_attention + config.num_parameters_ffn) // tp + 2 * config.hidden_size


def end_parameters(config: ModelConfig, stage: Stage, mesh: Mesh) -> int:
    """Parameters of embedding, final norm and head on a rank. A tied matrix counts once where both ends are."""
    matrix = -(-config.vocab_size // mesh.tp) * config.hidden_size
    count = matrix if stage.has_embedding else 0
    if stage.has_head:
        count += config.hidden_size
        if not (config.tie_word_embeddings and stage.has_embedding):
            count += matrix
    return count


def stage_parameters(config: ModelConfig, stage: Stage, mesh: Mesh) -> int:
    """Parameters that a device of a pipeline rank has before data parallel ranks share them."""
    return stage.num_layers * layer_parameters(config, mesh.tp) + end_parameters(config, stage, mesh)


def largest_unit(config: ModelConfig, stage: Stage, mesh: Mesh) -> int:
    """Parameters of the largest part that is gathered or reduced at once: a layer, or a matrix of the ends."""
    matrix = -(-config.vocab_size // mesh.tp) * config.hidden_size if stage.has_embedding or stage.has_head else 0
    return max(layer_parameters(config, mesh.tp), matrix)


def _slice(count: int, ranks: int) -> int:
    return -(-count // ranks)


def _gradients(config: ModelConfig, stage: Stage, mesh: Mesh, width: int) -> int:
    whole = stage_parameters(config, stage, mesh)
    if mesh.zero < 2 or mesh.shard == 1:
        return whole * width
    unit = largest_unit(config, stage, mesh)
    if mesh.pp > 1:
        unit = max(unit, max(stage.chunks) * layer_parameters(config, mesh.tp))
    return (_slice(whole, mesh.shard) + min(2 * unit, whole)) * width


def stage_memory(config: ModelConfig, mesh: Mesh, batch: Batch, stage: Stage, assumptions: Assumptions) -> RankMemory:
    """What the devices of one pipeline rank take."""
    state, tp = STATE_BYTES[batch.precision], mesh.tp
    wide, tokens = state.activation, batch.micro_batch * batch.sequence // mesh.cp
    whole, held = stage_parameters(config, stage, mesh), in_flight(mesh, stage.rank, batch.num_micro_batches(mesh))
    sliced = _slice(whole, mesh.shard)
    kept = layer_bytes(config, batch.recompute, tokens=tokens, tp=tp, bytes_per_value=wide)
    activations = int(held * stage.num_layers * kept * assumptions.activations) // len(stage.chunks)
    hidden = tokens * config.hidden_size * wide // tp
    logits = 0
    if stage.has_head:
        rows, columns = min(tokens, assumptions.loss_rows), -(-config.vocab_size // tp)
        logits = rows * columns * (wide + 4) + columns * config.hidden_size * 4 + 2 * tokens * config.hidden_size * wide
    buffers = working_bytes(config, batch.recompute, tokens=tokens, tp=tp, bytes_per_value=wide)
    if mesh.cp > 1:
        keyvalue = 2 * config.num_key_value_heads * config.head_dim // tp
        buffers += 2 * batch.micro_batch * batch.sequence * keyvalue * wide
    parameters = whole * state.parameter
    if mesh.zero == 3 and mesh.shard > 1:
        buffers += min(2 * largest_unit(config, stage, mesh), whole) * state.parameter
        parameters = sliced * state.parameter if batch.precision in ("fp32", "bf16-pure") else 0
    if mesh.pp > 1:
        buffers += 4 * hidden
    return RankMemory(
        rank=stage.rank,
        num_layers=stage.num_layers,
        num_parameters=whole,
        in_flight=held,
        parameters=parameters,
        gradients=_gradients(config, stage, mesh, state.gradient),
        optimizer=(whole if mesh.zero == 0 else sliced) * state.optimizer,
        activations=activations,
        logits=logits,
        buffers=buffers,
        reserve=int(assumptions.reserve_gb * 1e9),
    )


def train_memory(config: ModelConfig, mesh: Mesh, batch: Batch, assumptions: Assumptions) -> tuple[RankMemory, ...]:
    """Every pipeline rank's memory. Raises ConfigError for a mesh or batch that cannot be."""
    mesh.check(config)
    return tuple(stage_memory(config, mesh, batch, stage, assumptions) for stage in stages(config, mesh))


def fullest_bytes(config: ModelConfig, mesh: Mesh, batch: Batch, assumptions: Assumptions) -> int:
    """What the fullest rank takes: of stages with as many layers the first, since it has the most in flight; or one of the ends."""
    mesh.check(config)
    parts = stages(config, mesh)
    chosen = {part.num_layers: part for part in reversed(parts)}
    ends = {part.rank: part for part in (parts[0], parts[-1], *chosen.values())}
    return max(stage_memory(config, mesh, batch, part, assumptions).total for part in ends.values())
