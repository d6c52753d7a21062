"""Storage and compute dtypes for CPU execution. Imports no torch and loads no library, so planning can use it."""

from __future__ import annotations

from dataclasses import replace

from magicdec.costmodel.models.hf_config import why_not_executable
from magicdec.costmodel.models.transformer import TransformerConfig

from ..kernels.build import VECTOR_WIDTH

HALF_DTYPES = ("float16", "bfloat16")


def kernels_fit(config: TransformerConfig) -> bool:
    """Whether the C kernels can compute the layers of a model of this shape."""
    sizes = (config.d_model, config.head_dim, config.d_ff)
    return why_not_executable(config) is None and all(size % VECTOR_WIDTH == 0 for size in sizes)


def cpu_execution(config: TransformerConfig, *, kernels: bool) -> TransformerConfig:
    """The model with the dtypes it runs in on a CPU.

    Models are computed in float32, or in float64 if they are stored so. Where the C kernels compute the layers, matrices stay
    in the 16 bits they are stored in: float32 holds these numbers exactly, so this changes only how many bytes are read.

    Args:
        config: The model as it is stored.
        kernels: The C kernels compute it. When a model is loaded: they are usable and no other process shares it. When a run
            is planned: the CPU's profile has a rate for `config.dtype`, which is measured only with the kernels.
    """
    if config.bytes_per_element > 4:
        return config
    computed = config.with_dtype("float32")
    one_dtype = config == config.with_dtype(config.dtype)
    if kernels and config.dtype in HALF_DTYPES and one_dtype and kernels_fit(config):
        return replace(computed, embedding_dtype=config.dtype, linear_dtype=config.dtype)
    return computed
