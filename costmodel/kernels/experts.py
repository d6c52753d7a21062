"""Products with the weights of experts: one grouped product over all experts that some token chose.

It follows the law of a single product (`gemm`) with three differences. Rows of each expert are padded to tiles. Small kernels
before, between and after the products sort rows by expert, gather them, apply the activation and add up the results. And less of
the peak is reached; how much less depends on the type of the weights.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated

from ..base.records import STRICT, Limits
from .gemm import GemmLaw

SIXTEEN_BITS = ("bfloat16", "float16", "float32", "float64")
EIGHT_BITS = ("fp8", "int8", "mxfp8", "mxfp6")
FOUR_BITS = ("nvfp4", "mxfp4")


@dataclass(frozen=True)
class ExpertLaw:
    """Parameters of grouped products, where they differ from single ones.

    The defaults were fitted to the tables of vLLM, SGLang and TensorRT-LLM on nine GPUs together (docs/accuracy.md).

    Attributes:
        launch_s: Small kernels around the products, per layer. [s]
        tile_rows: Rows of an expert are padded to multiples of this.
        efficiency_16, efficiency_8, efficiency_4: Achieved share of the peak rate in 16, 8 and 4 bits. [0-1]
        packed_flop_per_s: Rate of one SM with packed weights that are unpacked to 16 bits; at most `packed_efficiency` of the peak.
            These kernels use instructions of older GPUs, so new GPUs are not faster. [FLOP/s]
        packed_efficiency: The most that they achieve. [0-1]
        packed_memory: Bandwidth with packed weights, relative to that of other products. [ratio]
    """

    launch_s: Annotated[float, Limits(ge=0.0, le=1e-3)] = 2.3e-5
    tile_rows: Annotated[int, Limits(ge=1, le=256)] = 64
    efficiency_16: Annotated[float, Limits(ge=0.02, le=1.0)] = 0.4
    efficiency_8: Annotated[float, Limits(ge=0.02, le=1.0)] = 0.29
    efficiency_4: Annotated[float, Limits(ge=0.02, le=1.0)] = 0.46
    packed_flop_per_s: Annotated[float, Limits(ge=1e9, le=1e14)] = 2.1e12
    packed_efficiency: Annotated[float, Limits(ge=0.02, le=1.0)] = 0.6
    packed_memory: Annotated[float, Limits(ge=0.05, le=1.0)] = 0.66

    __pydantic_config__ = STRICT


def grouped_law(law: ExpertLaw, single: GemmLaw, dtype: str, *, has_fp4: bool, sm_flop_per_s: float) -> GemmLaw:
    """The law of a grouped product with weights of this type.

    Args:
        law: Parameters of grouped products.
        single: The device's law of single products.
        dtype: Type of the weights.
        has_fp4: Whether the device computes in fp4.
        sm_flop_per_s: Peak rate of one SM, in the type that is computed in. [FLOP/s]
    """
    memory = single.memory_efficiency
    if dtype in SIXTEEN_BITS:
        compute = law.efficiency_16
    elif dtype in EIGHT_BITS:
        compute = law.efficiency_8
    elif dtype in FOUR_BITS and has_fp4:
        compute = law.efficiency_4
    else:
        compute = min(law.packed_efficiency, law.packed_flop_per_s / sm_flop_per_s)
        memory *= law.packed_memory
    return replace(single, compute_efficiency=compute, memory_efficiency=memory, tile_rows=law.tile_rows)
