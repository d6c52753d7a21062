"""Closed-form latency of an all-reduce within one node.

    one shot   L + (p - 1) n / (w1 B)                 every GPU reads the payloads of all its peers
    two shots  r L + v / W + f sqrt(r L v / W)        reduce-scatter, then all-gather; also a ring
    L = a + h (p - 1),  v = 2 (p - 1) / p n,  W = min(w2 B, C / p)

n is the payload, p the number of GPUs, B the peak link bandwidth of one GPU. A library that implements both algorithms uses
the faster one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..base.records import STRICT, Limits

Array = NDArray[np.float64]


@dataclass(frozen=True)
class AllreduceLaw:
    """Parameters of all-reduces on one node.

    Attributes:
        latency_s: Latency of an empty exchange, without the part per peer (`a`). [s]
        peer_latency_s: Extra latency per peer (`h`). [s]
        one_shot_efficiency: Achieved share of link bandwidth in one exchange (`w1`). [0-1]
        two_shot_efficiency: Achieved share in two exchanges or a ring (`w2`). [0-1]
        two_shot_latency_factor: Latency of two exchanges relative to one (`r`). [ratio]
        pipeline_fill: Cost of filling the pipeline for large payloads (`f`): 2 for a pipeline of fixed depth with optimal
            chunk size, 0 for none.
        shared_bytes_per_s: Total bandwidth of the host, which limits GPUs without direct links (`C`); unlimited by default.
            [bytes/s]
        one_shot: Whether the library implements the one-shot algorithm.
    """

    latency_s: Annotated[float, Limits(ge=0.0, le=1e-3)] = 6e-6
    peer_latency_s: Annotated[float, Limits(ge=0.0, le=1e-4)] = 2e-7
    one_shot_efficiency: Annotated[float, Limits(ge=0.02, le=1.0)] = 0.55
    two_shot_efficiency: Annotated[float, Limits(ge=0.02, le=1.0)] = 0.6
    two_shot_latency_factor: Annotated[float, Limits(ge=1.0, le=6.0)] = 1.8
    pipeline_fill: Annotated[float, Limits(ge=0.0, le=4.0)] = 0.2
    shared_bytes_per_s: Annotated[float, Limits(ge=1e9, le=1e15)] = 1e15
    one_shot: bool = True

    __pydantic_config__ = STRICT


def allreduce_s(law: AllreduceLaw, payload_bytes: ArrayLike, num_gpus: int, link_bytes_per_s: float) -> Array:
    """Latency of one all-reduce; 0 for a single GPU. [s]

    Args:
        law: Parameters of the node.
        payload_bytes: Payload of each GPU. [bytes]
        num_gpus: Participating GPUs.
        link_bytes_per_s: Peak link bandwidth of one GPU, one direction. [bytes/s]
    """
    payload = np.asarray(payload_bytes, np.float64)
    if num_gpus == 1:
        return 0 * payload
    shared = law.shared_bytes_per_s / num_gpus
    latency_s = law.latency_s + law.peer_latency_s * (num_gpus - 1)
    one_s = latency_s + (num_gpus - 1) * payload / min(law.one_shot_efficiency * link_bytes_per_s, shared)
    wire_s = 2 * (num_gpus - 1) / num_gpus * payload / min(law.two_shot_efficiency * link_bytes_per_s, shared)
    both_s = law.two_shot_latency_factor * latency_s
    two_s = both_s + wire_s + law.pipeline_fill * np.sqrt(both_s * wire_s)
    return np.minimum(one_s, two_s) if law.one_shot else two_s
