"""Time to first token with chunked prefill."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike

from .forward import Array

PREFILL_CHUNK = 8192  # default token budget of a prefill pass in serving engines


def ttft_s(
    pass_s: Callable[[ArrayLike, ArrayLike], Array], prompt_len: ArrayLike, batch_size: ArrayLike, chunk: int = PREFILL_CHUNK
) -> Array:
    """Time to first token of a batch of prompts that arrive together. [s]

    The cost of a chunk is linear in the context before it, so all full chunks together cost as much as equally many chunks at
    the mean context.

    Args:
        pass_s: Time of a pass with one sequence, given its new tokens and its cached tokens. [s]
        prompt_len: Length of each prompt. [tokens]
        batch_size: Prompts, prefilled one after the other.
        chunk: Maximum number of new tokens per pass. [tokens]
    """
    prompt = np.asarray(prompt_len, np.float64)
    whole = np.floor((prompt - 1) / chunk)  # full chunks; the last chunk is never empty
    rest = prompt - whole * chunk
    before_s = np.where(whole > 0, whole * pass_s(float(chunk), np.maximum(whole - 1, 0) / 2 * chunk), 0.0)
    return np.asarray(np.asarray(batch_size) * (before_s + pass_s(rest, whole * chunk)))
