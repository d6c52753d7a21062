"""Closed-form latency of a matrix product with weights: out[m, n] = activations[m, k] @ weights[n, k].T.

    t = launch + depth sqrt(k / 4096) + (compute^p + memory^p)^(1/p)

The square root models split-K: one tile needs a k for the serial loop over k. With s splits it needs a k / s, plus c s for
reducing s partial sums. The optimal s gives 2 sqrt(a c k).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..base.records import STRICT, Limits

Array = NDArray[np.float64]
DEPTH_REFERENCE = 4096.0
ROUNDING = 1e-9  # tolerance for expected row counts that are whole up to rounding


@dataclass(frozen=True)
class GemmLaw:
    """Parameters of matrix products on one device.

    Attributes:
        launch_s: Launch, prologue and epilogue of one product. [s]
        depth_s: Serial latency of a split-K product at k = 4096; proportional to the square root of k. [s]
        compute_efficiency: Achieved share of peak FLOP/s in large products. [0-1]
        memory_efficiency: Achieved share of peak bandwidth when streaming weights. [0-1]
        sharpness: Exponent p of the overlap: 1 for no overlap, infinity for full overlap.
        tile_rows: Rows of the largest tile; rows are padded to full tiles. 1 for no padding.
    """

    launch_s: Annotated[float, Limits(ge=0.0, le=1e-3)] = 4e-6
    depth_s: Annotated[float, Limits(ge=0.0, le=4e-5)] = 2.5e-6
    compute_efficiency: Annotated[float, Limits(ge=0.02, le=1.0)] = 0.7
    memory_efficiency: Annotated[float, Limits(ge=0.05, le=1.0)] = 0.8
    sharpness: Annotated[float, Limits(ge=1.0, le=12.0)] = 2.7
    tile_rows: Annotated[int, Limits(ge=1, le=256)] = 1

    __pydantic_config__ = STRICT


def gemm_s(
    law: GemmLaw,
    *,
    rows: ArrayLike,
    inputs: ArrayLike,
    flop: ArrayLike,
    moved_bytes: ArrayLike,
    flop_per_s: float,
    bytes_per_s: float,
) -> tuple[Array, Array, Array]:
    """Latency of one product, or of one grouped product with matrices of equal shape; array arguments broadcast.

    Args:
        law: Parameters of the device.
        rows, inputs: m and k of each matrix.
        flop: Total FLOP, without padding. [FLOP]
        moved_bytes: Weights, input and output activations. [bytes]
        flop_per_s, bytes_per_s: Peak rates. [FLOP/s, bytes/s]

    Returns:
        (compute time not hidden by memory traffic, memory time, fixed overhead). [s]
    """
    m = np.asarray(rows, np.float64)
    compute_s = np.asarray(flop) * (padded_rows(m, law.tile_rows) / np.maximum(m, 1e-30)) / (flop_per_s * law.compute_efficiency)
    memory_s = np.asarray(moved_bytes) / (bytes_per_s * law.memory_efficiency)
    exposed_s, read_s = exposed_times(compute_s, memory_s, law.sharpness)
    return exposed_s, read_s, np.asarray(law.launch_s + law.depth_s * np.sqrt(np.asarray(inputs) / DEPTH_REFERENCE))


def padded_rows(rows: Array, tile_rows: int) -> Array:
    """Pad rows: to a power of two up to one tile, to full tiles beyond."""
    if tile_rows == 1:
        return rows
    step = np.minimum(np.exp2(np.ceil(np.log2(np.maximum(rows, 1.0)) - ROUNDING)), tile_rows)
    return np.ceil(rows / step - ROUNDING) * step


def exposed_times(compute_s: Array, memory_s: Array, sharpness: float) -> tuple[Array, Array]:
    """Split (compute^p + memory^p)^(1/p) into (compute, memory): the larger in full, the smaller if not hidden. [s]"""
    larger, smaller = np.maximum(compute_s, memory_s), np.minimum(compute_s, memory_s)
    ratio = smaller / np.maximum(larger, 1e-30)
    rest = larger * (np.power(1 + np.power(ratio, sharpness), 1 / sharpness) - 1)
    computing = compute_s > memory_s
    return np.where(computing, compute_s, rest), np.where(computing, rest, memory_s)
