"""What a device sends in a training step: calls and bytes by dimension of the mesh, in closed form. `step_time` turns them into seconds.

For each micro-batch, and each tensor of D model dim and T tokens on the rank's part of the sequence:
    TP     a layer gathers before and scatters after attention and ffn (4), as many backward, and gathers its two inputs again for the
           gradients of their matrices (2), since those are kept in slices; with full recomputation 4 more. Embedding and head have 2 each.
    CP     keys and values are gathered forward and backward and their gradients scattered (3 a layer; 4 with full recomputation)
    PP     each chunk but the model's last sends its output on, each but the first its gradient back
and for each step and part (a layer, or a matrix of the ends), over data and context parallel ranks together:
    ZeRO-0 an all-reduce; ZeRO-1 a reduce-scatter of gradients and an all-gather of parameters; ZeRO-2 a reduce-scatter after every run of
    micro-batches; ZeRO-3 gathers before each run's forward and backward besides.
Bytes are those that leave a device on a ring: (n - 1) / n of the whole for a gather or scatter.
"""

from __future__ import annotations

from dataclasses import dataclass

from herd.model.config import ModelConfig
from herd.plan.memory import stage_parameters
from herd.plan.mesh import Batch, Mesh
from herd.plan.pipeline import Stage, run_length
from herd.plan.precision import STATE_BYTES


@dataclass(frozen=True, kw_only=True, slots=True)
class Traffic:
    """Collectives, or messages, of one dimension that a device takes part in during a step."""

    dimension: str
    ranks: int
    calls: int
    sent_bytes: int


def tensor_calls(batch: Batch) -> int:
    """Gathers and scatters of a layer and micro-batch."""
    return 14 if batch.recompute == "full" else 10


def context_calls(batch: Batch) -> int:
    """Gathers and scatters of keys and values of a layer and micro-batch."""
    return 4 if batch.recompute == "full" else 3


def hidden_bytes(config: ModelConfig, mesh: Mesh, batch: Batch) -> int:
    """The hidden states of a micro-batch on all ranks of a tensor parallel group together."""
    return batch.micro_batch * batch.sequence // mesh.cp * config.hidden_size * STATE_BYTES[batch.precision].activation


def keyvalue_bytes(config: ModelConfig, mesh: Mesh, batch: Batch) -> int:
    """Keys and values of a layer and micro-batch on all ranks of a context parallel group together."""
    width = 2 * config.num_key_value_heads * config.head_dim // mesh.tp
    return batch.micro_batch * batch.sequence * width * STATE_BYTES[batch.precision].activation


def num_ends(config: ModelConfig, stage: Stage) -> int:
    """Matrices of the ends that a stage has; a tied one counts once."""
    return int(stage.has_embedding) + int(stage.has_head) - int(stage.has_embedding and stage.has_head and config.tie_word_embeddings)


def step_traffic(config: ModelConfig, mesh: Mesh, batch: Batch, stage: Stage) -> tuple[Traffic, ...]:
    """Calls and bytes of a device of one pipeline rank; dimensions of one rank are left out."""
    count = batch.num_micro_batches(mesh)
    ends = int(stage.has_embedding) + int(stage.has_head)
    found: list[Traffic] = []

    def add(dimension: str, ranks: int, calls: int, whole_bytes: int) -> None:
        if ranks > 1 and calls:
            found.append(Traffic(dimension=dimension, ranks=ranks, calls=calls, sent_bytes=whole_bytes * (ranks - 1) // ranks))

    calls = count * (stage.num_layers * tensor_calls(batch) + 2 * ends)
    add("tensor", mesh.tp, calls, calls * hidden_bytes(config, mesh, batch))
    calls = count * stage.num_layers * context_calls(batch)
    add("context", mesh.cp, calls, calls * keyvalue_bytes(config, mesh, batch))
    if mesh.pp > 1:
        calls = count * (2 * len(stage.chunks) - ends)
        sent = calls * hidden_bytes(config, mesh, batch) // mesh.tp
        found.append(Traffic(dimension="pipeline", ranks=mesh.pp, calls=calls, sent_bytes=sent))
    calls, whole_bytes = _shared(config, mesh, batch, stage, count)
    add("data", mesh.shard, calls, whole_bytes)
    return tuple(found)


def _shared(config: ModelConfig, mesh: Mesh, batch: Batch, stage: Stage, count: int) -> tuple[int, int]:
    """Calls and whole bytes of gradients and parameters; an all-reduce counts as the scatter and the gather that it is."""
    state, whole = STATE_BYTES[batch.precision], stage_parameters(config, stage, mesh)
    units = stage.num_layers + num_ends(config, stage)
    rounds = max(1, count // run_length(mesh, count))
    if mesh.zero == 0:
        return units, 2 * whole * state.gradient
    scatters = 1 if mesh.zero == 1 else rounds
    gathers = 2 * rounds if mesh.zero == 3 else 1
    return units * (scatters + gathers), whole * (scatters * state.gradient + gathers * state.parameter)
