"""In which types a model runs on a CPU."""

from __future__ import annotations

from dataclasses import replace

from magicdec.costmodel.models.hf_config import EXECUTABLE_FAMILIES
from magicdec.costmodel.models.transformer import TransformerConfig

from ..kernels.build import VECTOR_WIDTH, kernels

NARROW = ("float16", "bfloat16")


def fit(config: TransformerConfig) -> bool:
    """The C kernels can compute the layers of a model of this shape."""
    sizes = (config.d_model, config.head_dim, config.d_ff)
    return config.family in EXECUTABLE_FAMILIES and all(size % VECTOR_WIDTH == 0 for size in sizes)


def on_cpu(config: TransformerConfig, *, alone: bool = True) -> TransformerConfig:
    """The model as a CPU runs it: computed in float32, or in float64 if it is stored so.

    Its matrices stay in the 16 bits they are stored in where the C kernels read them: float32 holds such numbers exactly, so
    nothing but the bytes read depends on it.

    Args:
        config: As it is stored.
        alone: No other process shares it: layers that several share are computed by torch.
    """
    if config.bytes_per_element > 4:
        return config
    wide = config.with_dtype("float32")
    one_type = config == config.with_dtype(config.dtype)
    if config.dtype in NARROW and one_type and alone and fit(config) and kernels() is not None:
        return replace(wide, embedding_dtype=config.dtype, linear_dtype=config.dtype)
    return wide
