"""How long a training step takes, in closed form, by what the slowest pipeline rank does. Rates are the device's times `Assumptions`.

    work      M micro-batches x (products + attention + element-wise passes + recomputation + exposed TP and CP communication)
    bubble    (PP - 1) x a chunk's forward and backward and the two messages between
    data      what of the gradients' reduction and the parameters' gathering does not hide: each layer's may hide behind the next layers'
              work, the last one's never does
    optimizer one pass over its state
    TP, CP    the collectives of `traffic`, none of which hides unless it is assumed to
Messages between stages are asynchronous and count only as far as they outlast a chunk's work, and in the bubble.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from herd.model.config import ModelConfig
from herd.plan.activations import moved_values
from herd.plan.assumptions import Assumptions
from herd.plan.hardware import Device
from herd.plan.memory import stage_parameters
from herd.plan.mesh import Batch, Mesh
from herd.plan.network import Links, mesh_links
from herd.plan.pipeline import Stage, run_length, stages
from herd.plan.precision import STATE_BYTES
from herd.plan.traffic import context_calls, hidden_bytes, keyvalue_bytes, num_ends, tensor_calls

BOUNDS = {
    "products": "matrix products",
    "attention": "attention",
    "elementwise": "memory bandwidth",
    "recomputation": "recomputation",
    "tensor": "tensor-parallel communication",
    "context": "context-parallel communication",
    "pipeline": "pipeline messages",
    "bubble": "the pipeline bubble",
    "data": "data-parallel communication",
    "optimizer": "the optimiser",
    "synchronisation": "synchronisation",
}
"""What each part of a step is called where it is what holds the step up."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StepTime:
    """Seconds of a step by what they go to, as the slowest pipeline rank has it."""

    products: float
    attention: float
    elementwise: float
    recomputation: float
    tensor: float
    context: float
    pipeline: float
    bubble: float
    data: float
    optimizer: float
    synchronisation: float

    @property
    def total(self) -> float:
        """The whole step."""
        return sum(getattr(self, field.name) for field in fields(self))

    def parts(self) -> dict[str, float]:
        """Seconds by part."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @property
    def bound(self) -> str:
        """The part that takes longest."""
        return max(BOUNDS, key=lambda name: getattr(self, name))


@dataclass(frozen=True, kw_only=True, slots=True)
class _Layer:
    """Seconds of one layer and micro-batch on one device, forward and backward together, but for `forward`, the forward share of it all."""

    products: float
    attention: float
    elementwise: float
    recomputation: float
    tensor: float
    context: float

    @property
    def total(self) -> float:
        return self.products + self.attention + self.elementwise + self.recomputation + self.tensor + self.context

    @property
    def forward(self) -> float:
        return (self.total - self.recomputation) / 3

    @property
    def backward(self) -> float:
        return self.total - self.forward


def product_s(rate: float, half_width: float, *sizes: float | int) -> float:
    """Seconds of one product forward and its two backward, of tokens x in x out; narrow ones reach less of the rate."""
    narrowest = min(sizes)
    return 6 * sizes[0] * sizes[1] * sizes[2] / (rate * narrowest / (narrowest + half_width))


def _layer(config: ModelConfig, mesh: Mesh, batch: Batch, device: Device, assumptions: Assumptions, links: Links) -> _Layer:
    state = STATE_BYTES[batch.precision]
    tokens, wide = batch.micro_batch * batch.sequence / mesh.cp, state.activation
    rate, half = device.tflops(state.dtype) * 1e12 * assumptions.matmul, assumptions.half_width
    attention_rate = device.tflops("fp32" if batch.precision == "fp32" else "bf16") * 1e12 * assumptions.attention
    dim, ffn, query = config.hidden_size, config.intermediate_size / mesh.tp, config.num_attention_heads * config.head_dim / mesh.tp
    projected = query + 2 * config.num_key_value_heads * config.head_dim / mesh.tp
    wide_ffn = 2 * product_s(rate, half, tokens, dim, ffn)
    products = product_s(rate, half, tokens, dim, projected) + product_s(rate, half, tokens, query, dim) + 1.5 * wide_ffn
    attention = 6 * config.num_attention_heads * config.head_dim * batch.sequence * tokens / mesh.tp / attention_rate
    again = {"selective": wide_ffn / 3, "full": (products + attention) / 3}.get(batch.recompute, 0.0)
    memory = moved_values(config, batch.recompute) * tokens * wide / mesh.tp / (device.memory_gb_per_s * 1e9 * assumptions.memory)
    tensor = tensor_calls(batch) * links.tp.gather_s(hidden_bytes(config, mesh, batch)) * (1 - assumptions.tp_overlap)
    context = context_calls(batch) * links.cp.gather_s(keyvalue_bytes(config, mesh, batch)) * (1 - assumptions.cp_overlap)
    return _Layer(
        products=products,
        attention=attention,
        elementwise=memory,
        recomputation=again,
        tensor=tensor,
        context=context,
    )


def _head_s(config: ModelConfig, mesh: Mesh, batch: Batch, device: Device, assumptions: Assumptions) -> tuple[float, float]:
    """The output matrix of one micro-batch: its products, and the passes over its scores."""
    tokens, state = batch.micro_batch * batch.sequence / mesh.cp, STATE_BYTES[batch.precision]
    dtype = "fp32" if batch.precision == "fp32" else "bf16"
    rate = device.tflops(dtype) * 1e12 * assumptions.matmul
    products = product_s(rate, assumptions.half_width, tokens, config.hidden_size, config.vocab_size / mesh.tp)
    moved = tokens * config.vocab_size / mesh.tp * (2 * state.activation + 4 * 4)
    return products, moved / (device.memory_gb_per_s * 1e9 * assumptions.memory)


def _data_s(config: ModelConfig, mesh: Mesh, batch: Batch, layer: _Layer, stage: Stage, links: Links, *, overlap: bool) -> float:
    """What of gradients and parameters on their way does not hide behind work."""
    if mesh.shard == 1:
        return 0.0
    state, count = STATE_BYTES[batch.precision], batch.num_micro_batches(mesh)
    units = stage.num_layers + num_ends(config, stage)
    unit = stage_parameters(config, stage, mesh) / units
    gather, scatter = links.shard.gather_s(unit * state.parameter), links.shard.gather_s(unit * state.gradient)
    run = run_length(mesh, count)

    def exposed(seconds: float, window: float, times: int) -> float:
        """Of `times` rounds of all units: what outlasts the work beside it, and each step's last unit whole."""
        if not overlap:
            return seconds * units * times
        return max(0.0, seconds - window) * (units * times - 1) + seconds

    if mesh.zero == 0:
        return exposed(2 * scatter, layer.backward, 1)
    if mesh.zero == 1:
        return exposed(scatter, layer.backward, 1) + exposed(gather, layer.forward, 1)
    rounds = max(1, count // run)
    if mesh.zero == 2:
        return exposed(scatter, run * layer.backward, rounds) + exposed(gather, run * layer.forward, 1)
    return exposed(gather, run * layer.forward, rounds) + exposed(gather + scatter, run * layer.backward, rounds)


def _optimizer_s(config: ModelConfig, mesh: Mesh, batch: Batch, device: Device, stage: Stage, assumptions: Assumptions) -> float:
    state = STATE_BYTES[batch.precision]
    count = stage_parameters(config, stage, mesh) / (1 if mesh.zero == 0 else mesh.shard)
    moved = count * (state.gradient + 2 * state.optimizer + state.parameter)
    return moved / (device.memory_gb_per_s * 1e9 * assumptions.memory)


def step_time(config: ModelConfig, mesh: Mesh, batch: Batch, device: Device, assumptions: Assumptions) -> StepTime:
    """The time of a step. Raises ConfigError for a mesh or batch that cannot be."""
    mesh.check(config)
    count, links = batch.num_micro_batches(mesh), mesh_links(device, mesh, assumptions)
    layer = _layer(config, mesh, batch, device, assumptions, links)
    head, head_passes = _head_s(config, mesh, batch, device, assumptions)

    gather = links.tp.gather_s(hidden_bytes(config, mesh, batch)) * (1 - assumptions.tp_overlap)

    def ends(stage: Stage) -> float:
        return 2 * (int(stage.has_embedding) + int(stage.has_head)) * gather

    def work(stage: Stage) -> float:
        return stage.num_layers * layer.total + ends(stage) + (head + head_passes if stage.has_head else 0.0)

    slowest = max(stages(config, mesh), key=work)
    layers, has_head = slowest.num_layers * count, slowest.has_head
    chunk = work(slowest) / len(slowest.chunks)
    message = links.pp.send_s(hidden_bytes(config, mesh, batch) / mesh.tp)
    exposed_messages = 2 * max(0.0, message - chunk / 3) * count * len(slowest.chunks) if mesh.pp > 1 else 0.0
    parts = {
        "products": layers * layer.products + (count * head if has_head else 0.0),
        "attention": layers * layer.attention,
        "elementwise": layers * layer.elementwise + (count * head_passes if has_head else 0.0),
        "recomputation": layers * layer.recomputation,
        "tensor": layers * layer.tensor + count * ends(slowest),
        "context": layers * layer.context,
        "pipeline": exposed_messages,
        "bubble": (mesh.pp - 1) * (chunk + 2 * message),
        "data": _data_s(config, mesh, batch, layer, slowest, links, overlap=assumptions.dp_overlap),
        "optimizer": _optimizer_s(config, mesh, batch, device, slowest, assumptions),
    }
    spread = mesh.size > device.devices_per_node
    return StepTime(**parts, synchronisation=sum(parts.values()) * assumptions.synchronisation if spread else 0.0)
