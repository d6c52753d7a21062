"""Closed-form latency of products of few rows with quantised weights: GEMV kernels, dequantisation, switch to batched kernels.

Up to `vector_rows` rows, a kernel reads each weight once and multiplies it with all rows on the vector units, which must unpack
the weight first. Beyond, a batched kernel unpacks a tile and multiplies it on the matrix units:

    vector   t = launch + (memory^p + arithmetic^p)^(1/p)    arithmetic = rows x unpacking and multiplying, at vector rate
    batched  t = launch + (memory^p + arithmetic^p)^(1/p)    rows padded to tiles, at matrix rate; reads at a lower share

Where the vector kernel is the slower one already, engines keep it all the same: 8 tokens cost more than 9 on an RTX 3090.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..base.records import STRICT, Limits
from .gemm import exposed_times

Array = NDArray[np.float64]
PLAIN_TYPES = frozenset({"float64", "float32", "bfloat16", "float16"})


@dataclass(frozen=True)
class QuantisedLaw:
    """Parameters of products with quantised weights in one engine, on one class of machines.

    Attributes:
        launch_s: Launch of one product, with quantising its input. [s]
        memory_efficiency: Achieved share of peak bandwidth with one row. [0-1]
        vector_rows: Rows up to which the vector kernel is used; 0 without one. [rows]
        vector_efficiency: Achieved share of the peak vector rate, unpacking included. [0-1]
        vector_sharpness: Exponent of the overlap of reading and arithmetic in the vector kernel.
        batched_memory_efficiency: Achieved share of peak bandwidth of the batched kernel. [0-1]
        batched_efficiency: Achieved share of the peak matrix rate of the batched kernel. [0-1]
        batched_tile: Rows that the batched kernel is padded to. [rows]
    """

    launch_s: Annotated[float, Limits(ge=0.0, le=1e-3)] = 4e-6
    memory_efficiency: Annotated[float, Limits(ge=0.05, le=1.0)] = 0.85
    vector_rows: Annotated[int, Limits(ge=0, le=64)] = 8
    vector_efficiency: Annotated[float, Limits(ge=0.005, le=4.0)] = 0.2
    vector_sharpness: Annotated[float, Limits(ge=1.0, le=12.0)] = 2.0
    batched_memory_efficiency: Annotated[float, Limits(ge=0.05, le=1.0)] = 0.6
    batched_efficiency: Annotated[float, Limits(ge=0.005, le=4.0)] = 0.3
    batched_tile: Annotated[int, Limits(ge=1, le=256)] = 16

    __pydantic_config__ = STRICT


def quantised_s(
    law: QuantisedLaw,
    *,
    rows: ArrayLike,
    flop: ArrayLike,
    moved_bytes: ArrayLike,
    vector_flop_per_s: float,
    matrix_flop_per_s: float,
    bytes_per_s: float,
) -> tuple[Array, Array, Array]:
    """Latency of one product with quantised weights; array arguments broadcast.

    Args:
        law: Parameters.
        rows: Rows of each matrix. [tokens]
        flop: Total FLOP, without padding. [FLOP]
        moved_bytes: Weights, input and output activations. [bytes]
        vector_flop_per_s, matrix_flop_per_s, bytes_per_s: Peak rates. [FLOP/s, bytes/s]

    Returns:
        (arithmetic not hidden by memory traffic, memory time, fixed overhead). [s]
    """
    m, work = np.maximum(np.asarray(rows, np.float64), 1e-30), np.asarray(flop, np.float64)
    moved = np.asarray(moved_bytes, np.float64)
    vector = exposed_times(
        work / (vector_flop_per_s * law.vector_efficiency), moved / (bytes_per_s * law.memory_efficiency), law.vector_sharpness
    )
    padded = np.ceil(m / law.batched_tile - 1e-9) * law.batched_tile
    batched = exposed_times(
        work * (padded / m) / (matrix_flop_per_s * law.batched_efficiency),
        moved / (bytes_per_s * law.batched_memory_efficiency),
        law.vector_sharpness,
    )
    few = m <= law.vector_rows
    return np.where(few, vector[0], batched[0]), np.where(few, vector[1], batched[1]), np.full(m.shape, law.launch_s)
