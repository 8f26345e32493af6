"""What share of the nameplate a program reaches, and what else a plan has to suppose. Every one is a field, and none depends on the model.

Defaults for GPUs are figures of the field for large matrices in bfloat16 on boards at full power; `--assume matmul=0.7` sets another. They
were chosen once and for all devices, meshes and models, and are held against the published rows of the 405B by a test: the three rows were
run by the same code on the same boards, so one set has to explain them all.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

from herd.base.errors import ConfigError
from herd.plan.hardware import Device

_SHARES = ("matmul", "attention", "memory", "link", "network")


@dataclass(frozen=True, kw_only=True, slots=True)
class Assumptions:
    """Shares of the nameplate, and constants.

    Attributes:
        matmul: share of the dense peak that the largest matrix products reach while training goes on. The best single shapes reach 0.75 to
            0.8 of an H100 that is cool; boards at their power limit and launches bring the average down.
        half_width: a product whose smallest dimension is n reaches n / (n + half_width) of that.
        attention: share of the dense peak that causal attention reaches, forward and backward together, where only 6 L N H S operations a
            token count; what the kernel computes again in the backward pass is part of the loss. FlashAttention 2 comes to about 0.3 of an
            H100, version 3 to about 0.45.
        memory: share of the memory's bandwidth that norms, activations and the optimiser reach.
        link: share of one direction of the links within a node that collectives of tens to hundreds of MB reach.
        network: share of a network port that large messages reach.
        tp_overlap: share of tensor-parallel communication that hides behind products; 0 for plain collectives between them.
        cp_overlap: share of the gathering of keys and values that hides behind attention; 0, as the report says of its own.
        dp_overlap: whether gradients and parameters travel while other layers compute.
        link_latency_us: of a hop within a node.
        network_latency_us: of a hop between nodes.
        synchronisation: what a step on several nodes loses to the slowest of them: jitter, hot boards, congestion.
        reserve_gb: memory of a device that is not for tensors: its driver's context, buffers of the collectives, gaps of the allocator.
        activations: what the implementation keeps for the backward pass over what fused kernels would. 1 is a fused one; herd's plain block
            under autocast on a CPU keeps 2.5 times as much, since its residual stream, norms and rotation are float32.
        loss_rows: tokens whose logits exist at once; herd's loss never holds more.
    """

    matmul: float = 0.7
    half_width: float = 384.0
    attention: float = 0.38
    memory: float = 0.8
    link: float = 0.7
    network: float = 0.85
    tp_overlap: float = 0.0
    cp_overlap: float = 0.0
    dp_overlap: bool = True
    link_latency_us: float = 3.0
    network_latency_us: float = 10.0
    synchronisation: float = 0.02
    reserve_gb: float = 4.0
    activations: float = 1.0
    loss_rows: int = 512

    def __post_init__(self) -> None:
        for name in _SHARES:
            if not 0 < getattr(self, name) <= 1:
                raise ConfigError(f"assumption {name} is {getattr(self, name)}, it must be over 0 and at most 1", hint="0.65 is 65 %")
        for name in ("tp_overlap", "cp_overlap"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"assumption {name} is {getattr(self, name)}, it must be between 0 and 1", hint="0.5 hides half of it")
        for name in ("half_width", "link_latency_us", "network_latency_us", "synchronisation", "reserve_gb"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"assumption {name} is {getattr(self, name)}, it must be 0 or more", hint="0 leaves it out")
        if not self.activations > 0:
            raise ConfigError(f"assumption activations is {self.activations}, it must be over 0", hint="1 is a fused implementation")
        if self.loss_rows < 1:
            raise ConfigError(f"assumption loss_rows is {self.loss_rows}, it must be at least 1", hint="herd's loss takes 512")

    def to_dict(self) -> dict[str, Any]:
        """Names and values."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def default_assumptions(device: Device) -> Assumptions:
    """What is supposed of a device. A measured rate is itself a product of good shape, so more of it is reached than of a nameplate."""
    plain = Assumptions()
    if device.kind == "gpu":
        return replace(plain, matmul=0.85, memory=0.9) if device.measured else plain
    cpu = replace(
        plain,
        attention=0.15,
        link=0.5,
        network=0.7,
        reserve_gb=0.5,
        half_width=64.0,
        activations=2.5,
        link_latency_us=20.0,
        network_latency_us=60.0,
    )
    return replace(cpu, matmul=0.8, memory=0.9) if device.measured else replace(cpu, matmul=0.5, memory=0.7)
