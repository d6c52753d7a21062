"""What is assumed of a machine that nobody has calibrated, by its cores and by how its devices are connected."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from ..kernels.attention import AttentionLaw
from ..kernels.collectives import AllreduceLaw

Interconnect = Literal["fabric", "pcie", "network"]
CORES_TO_SATURATE = 0.67  # share of the cores whose loads together saturate memory
# Cards without direct links exchange through the host, in a ring. Latencies and shares are those fitted to the tables of l40s.
PCIE_ALLREDUCE = AllreduceLaw(
    latency_s=3e-6, peer_latency_s=3e-6, two_shot_efficiency=0.59, two_shot_latency_factor=1.0, pipeline_fill=0.2, one_shot=False
)
PCIE_SHARED = 0.65  # bandwidth of the host, relative to one link
# Systems in a network, Ethernet or Thunderbolt: assumed.
NETWORK_ALLREDUCE = AllreduceLaw(
    latency_s=3e-5, peer_latency_s=1e-5, two_shot_efficiency=0.7, two_shot_latency_factor=1.0, pipeline_fill=0.5, one_shot=False
)


def default_attention(num_sms: int, bandwidth_bytes_per_s: float) -> AttentionLaw:
    """The default law, with cores fast enough to saturate memory together.

    Args:
        num_sms: Cores of the device; accelerators with large matrix units have few.
        bandwidth_bytes_per_s: Memory bandwidth. [bytes/s]
    """
    usual = AttentionLaw()
    needed = bandwidth_bytes_per_s / (CORES_TO_SATURATE * num_sms)
    return usual if needed <= usual.sm_bytes_per_s else replace(usual, sm_bytes_per_s=needed)


def default_allreduce(interconnect: Interconnect, link_bytes_per_s: float) -> AllreduceLaw:
    """The default law of this kind of interconnect.

    Args:
        interconnect: Direct links between all devices, PCI Express, or a network between systems.
        link_bytes_per_s: Bandwidth of one device to its peers, one direction. [bytes/s]
    """
    if interconnect == "network":
        return NETWORK_ALLREDUCE
    if interconnect == "pcie":
        return replace(PCIE_ALLREDUCE, shared_bytes_per_s=max(1e9, PCIE_SHARED * link_bytes_per_s))
    return AllreduceLaw()
