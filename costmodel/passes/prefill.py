"""What reading the prompts costs, in chunks: the time to the first token."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike

from .forward import Array

PREFILL_CHUNK = 8192  # tokens over the batch that engines read in one pass by default


def ttft_s(
    pass_s: Callable[[ArrayLike, ArrayLike], Array], prompt_len: ArrayLike, batch_size: ArrayLike, chunk: int = PREFILL_CHUNK
) -> Array:
    """Time until every prompt of a batch is read and has its first token; the prompts arrive together. [s]

    The cost of a chunk is linear in what was read before it, so that whole chunks cost what as many do in the middle.

    Args:
        pass_s: Time of a pass of one sequence, given its new tokens and its tokens already read. [s]
        prompt_len: Tokens of a prompt. [tokens]
        batch_size: Prompts, read one after the other.
        chunk: Most new tokens of a pass. [tokens]
    """
    prompt = np.asarray(prompt_len, np.float64)
    whole = np.floor((prompt - 1) / chunk)  # the last chunk is what remains, never nothing
    rest = prompt - whole * chunk
    before_s = np.where(whole > 0, whole * pass_s(float(chunk), np.maximum(whole - 1, 0) / 2 * chunk), 0.0)
    return np.asarray(np.asarray(batch_size) * (before_s + pass_s(rest, whole * chunk)))
