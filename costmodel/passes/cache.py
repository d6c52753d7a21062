"""What a sequence keeps between passes: KV entries that grow with the context, and states that do not."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..layers.attention import AttentionKind, Compressed
from ..layers.dtypes import BYTES_PER_ELEMENT
from ..models.transformer import TransformerConfig

Array = NDArray[np.float64]


def kept_entries(kind: AttentionKind, context_len: ArrayLike) -> Array:
    """KV entries of one sequence in one layer; sliding-window layers keep at most their window. [entries]"""
    if isinstance(kind, Compressed) and kind.ratio:
        return np.minimum(context_len, kind.window) + np.asarray(context_len, np.float64) / kind.ratio
    return np.asarray(np.minimum(context_len, np.inf if kind.limit is None else kind.limit), np.float64)


def kv_bytes_per_gpu(model: TransformerConfig, context_len: ArrayLike, tensor_parallel: int) -> Array:
    """KV cache of one sequence on one GPU, index keys included; sliding-window layers keep at most their window. [bytes]"""
    total, element = 0 * np.asarray(context_len, np.float64), model.kv_bytes_per_element
    for kind, layers in model.attentions:
        if not kind.shares_kv:
            total = total + layers * kept_entries(kind, context_len) * kind.read_width_on(tensor_parallel) * element
        if kind.index is not None and kind.index.computed:
            scored = np.asarray(context_len, np.float64) / (kind.ratio if isinstance(kind, Compressed) else 1)
            total = total + layers * scored * kind.index.bytes_per_entry(element)
    return total


def state_bytes_per_gpu(model: TransformerConfig, tensor_parallel: int) -> float:
    """Recurrent states of one sequence on one GPU: the same for any context. [bytes]"""
    state = BYTES_PER_ELEMENT[model.state_dtype or model.dtype]
    return sum(
        layers * (kind.state_elements * state + kind.conv_elements * model.bytes_per_element) / tensor_parallel
        for kind, layers in model.recurrents
    )
