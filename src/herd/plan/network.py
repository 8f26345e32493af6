"""How long collectives take: bytes over the bandwidth of the slowest part of the way, and a latency for each hop of a ring.

A dimension whose ranks all sit in one node uses its links. Otherwise a ring passes through all ranks of a node before it leaves, and there
are as many rings as ranks in the node, each with a port of its own: so a device sees as many ports as its group has members in the node.
Volumes are those of rings: all-gather and reduce-scatter move (n - 1) / n of the whole through each device, all-reduce twice that.
"""

from __future__ import annotations

from dataclasses import dataclass

from herd.plan.assumptions import Assumptions
from herd.plan.hardware import Device
from herd.plan.mesh import Mesh


@dataclass(frozen=True, kw_only=True, slots=True)
class Link:
    """A dimension of the mesh as its collectives see it."""

    ranks: int
    bytes_per_s: float
    latency_s: float
    crosses_nodes: bool

    def gather_s(self, whole_bytes: float | int) -> float:
        """Seconds of an all-gather, or a reduce-scatter, of tensors that are so large together."""
        if self.ranks == 1:
            return 0.0
        return whole_bytes * (self.ranks - 1) / self.ranks / self.bytes_per_s + (self.ranks - 1) * self.latency_s

    def reduce_s(self, whole_bytes: float | int) -> float:
        """Seconds of an all-reduce."""
        return 2 * self.gather_s(whole_bytes)

    def send_s(self, size_bytes: float | int) -> float:
        """Seconds of a message to the next rank."""
        return 0.0 if self.ranks == 1 else size_bytes / self.bytes_per_s + self.latency_s


def link(device: Device, assumptions: Assumptions, *, ranks: int, stride: int, in_pairs: bool = False) -> Link:
    """The link of a group of `ranks` devices, `stride` apart. `in_pairs` is for messages from one rank to the next."""
    crosses = ranks * stride > device.devices_per_node
    if not crosses:
        rate, latency = device.link_gb_per_s * assumptions.link, assumptions.link_latency_us
    else:
        members = 1 if in_pairs else max(1, min(ranks, device.devices_per_node // stride))
        rate = min(members * device.network_gb_per_s * assumptions.network, device.link_gb_per_s * assumptions.link)
        latency = assumptions.network_latency_us
    return Link(ranks=ranks, bytes_per_s=rate * 1e9, latency_s=latency * 1e-6, crosses_nodes=crosses)


@dataclass(frozen=True, kw_only=True, slots=True)
class Links:
    """The four dimensions' links; `shard` is data and context parallel ranks together."""

    tp: Link
    cp: Link
    pp: Link
    shard: Link


def mesh_links(device: Device, mesh: Mesh, assumptions: Assumptions) -> Links:
    """The links of a mesh in the rank order [TP, CP, PP, DP]."""
    spread = mesh.pp if mesh.dp > 1 else 1
    return Links(
        tp=link(device, assumptions, ranks=mesh.tp, stride=1),
        cp=link(device, assumptions, ranks=mesh.cp, stride=mesh.tp),
        pp=link(device, assumptions, ranks=mesh.pp, stride=mesh.tp * mesh.cp, in_pairs=True),
        shard=link(device, assumptions, ranks=mesh.shard, stride=mesh.tp * spread),
    )
