"""Time of a matrix product with weights: out[m, n] = activations[m, k] @ weights[n, k].T, in closed form.

    t = launch + depth sqrt(k / 4096) + (compute^p + memory^p)^(1/p)

The square root: one tile walks all of k serially, a time a k. Cut into s parts it takes a k / s, but the s partial sums
cost c s to reduce; with the best s the two together take 2 sqrt(a c k).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
from annotated_types import Interval
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
DEPTH_REFERENCE = 4096.0
ROUNDING = 1e-9  # an expected number of rows may be a whole one but for its last bit


@dataclass(frozen=True)
class GemmLaw:
    """How much of the peaks matrix products reach, and what they take beside.

    Attributes:
        launch_s: Launch, prologue and epilogue of one product. [s]
        depth_s: Serial latency along k of a split product, at k = 4096; grows with the square root of k. [s]
        compute_efficiency: Of peak FLOP/s, in large products. [0-1]
        memory_efficiency: Of peak bandwidth, streaming weights. [0-1]
        sharpness: How compute and memory time overlap: 1 adds them up, infinity hides the smaller behind the larger.
        tile_rows: Rows of the largest tile; what is computed fills whole tiles. 1 where no steps are seen.
    """

    launch_s: Annotated[float, Interval(ge=0.0, le=1e-3)] = 4e-6
    depth_s: Annotated[float, Interval(ge=0.0, le=4e-5)] = 2.5e-6
    compute_efficiency: Annotated[float, Interval(ge=0.02, le=1.0)] = 0.7
    memory_efficiency: Annotated[float, Interval(ge=0.05, le=1.0)] = 0.8
    sharpness: Annotated[float, Interval(ge=1.0, le=12.0)] = 2.7
    tile_rows: Annotated[int, Interval(ge=1, le=256)] = 1

    __pydantic_config__: ClassVar[dict[str, object]] = {"extra": "forbid"}  # in profile files


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
    """One product, or one grouped product with several matrices of that shape.

    Args:
        law: Of the machine.
        rows, inputs: m and k of each matrix.
        flop: Of all of them, unpadded. [FLOP]
        moved_bytes: Weights, activations in and out. [bytes]
        flop_per_s, bytes_per_s: Peaks. [FLOP/s, bytes/s]

    Returns:
        What it spends on arithmetic that does not hide behind memory traffic, on memory traffic, and beside both. [s]
    """
    m = np.asarray(rows, np.float64)
    compute_s = np.asarray(flop) * (padded_rows(m, law.tile_rows) / np.maximum(m, 1e-30)) / (flop_per_s * law.compute_efficiency)
    memory_s = np.asarray(moved_bytes) / (bytes_per_s * law.memory_efficiency)
    exposed_s, read_s = shared_time(compute_s, memory_s, law.sharpness)
    return exposed_s, read_s, np.asarray(law.launch_s + law.depth_s * np.sqrt(np.asarray(inputs) / DEPTH_REFERENCE))


def padded_rows(rows: Array, tile_rows: int) -> Array:
    """Rows computed for those wanted: a power of two up to one tile, whole tiles beyond."""
    if tile_rows == 1:
        return rows
    step = np.minimum(np.exp2(np.ceil(np.log2(np.maximum(rows, 1.0)) - ROUNDING)), tile_rows)
    return np.ceil(rows / step - ROUNDING) * step


def shared_time(compute_s: Array, memory_s: Array, sharpness: float) -> tuple[Array, Array]:
    """What each adds to (compute^p + memory^p)^(1/p): the larger in full, the smaller what does not hide behind it. [s]"""
    larger, smaller = np.maximum(compute_s, memory_s), np.minimum(compute_s, memory_s)
    ratio = smaller / np.maximum(larger, 1e-30)
    rest = larger * (np.power(1 + np.power(ratio, sharpness), 1 / sharpness) - 1)
    computing = compute_s > memory_s
    return np.where(computing, compute_s, rest), np.where(computing, rest, memory_s)
