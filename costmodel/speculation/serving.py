"""Whole requests under continuous batching: prefill and decoding."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from ..passes.forward import Array
from .deployment import Deployment


@dataclass(frozen=True, eq=False)
class Serving:
    """End-to-end metrics of requests; arrays broadcast.

    The batch is always full: when a request finishes, the next one is prefilled at once while the other sequences wait.

    Attributes:
        prefill_s: Time of the prefill of one request, without what is cached of its prompt. [s]
        tpot_s: Time per output token, without waiting for prefills. [s]
        output_len: Output tokens per request. [tokens]
        batch_size: Sequences over all replicas.
        replicas: Copies of the model, among which the batch is split.
        queue_s: Time that a request waits before its prefill. [s]
    """

    prefill_s: Array
    tpot_s: Array
    output_len: Array
    batch_size: Array
    replicas: int
    queue_s: float = 0.0

    @property
    def ttft_s(self) -> Array:
        """Time to first token. [s]"""
        return self.queue_s + self.prefill_s

    @property
    def request_s(self) -> Array:
        """Latency of one request, without waiting for other prefills while it decodes. [s]"""
        return self.ttft_s + self.output_len * self.tpot_s

    @property
    def cycle_s(self) -> Array:
        """Time in which each batch slot serves one request, prefill included. [s]"""
        return self.output_len * self.tpot_s + self.batch_size / self.replicas * self.prefill_s

    @property
    def throughput_tokens_per_s(self) -> Array:
        """End-to-end output throughput, prefill included. [tokens/s]"""
        return self.batch_size * self.output_len / self.cycle_s

    @property
    def prefill_share(self) -> Array:
        """Share of the time spent on prefill. [0-1]"""
        return 1 - self.output_len * self.tpot_s / self.cycle_s


def serving(
    deployment: Deployment,
    *,
    prompt_lens: ArrayLike,
    output_len: ArrayLike,
    batch_size: ArrayLike,
    tpot_s: ArrayLike,
    cached_share: float = 0.0,
    queue_s: float = 0.0,
) -> Serving:
    """Compute end-to-end metrics of requests.

    Args:
        deployment: Model and hardware.
        prompt_lens: Prompt lengths; the mean of their prefill times is used. [tokens]
        output_len: Mean output length. [tokens]
        batch_size: Sequences over all replicas.
        tpot_s: Time per output token. [s]
        cached_share: Share of each prompt whose KV cache is there already; at least the last token is computed. [0-1]
        queue_s: Time that a request waits before its prefill. [s]
    """
    lengths = np.atleast_1d(np.asarray(prompt_lens, np.float64))
    prefill_s = deployment.ttft_s(lengths)
    cached = np.floor(cached_share * lengths)
    if cached.any():
        least_s = deployment.pass_time(1, np.maximum(lengths - cached, 1), cached, logits_len=1).total_s
        prefill_s = np.maximum(prefill_s - np.where(cached > 0, deployment.ttft_s(np.maximum(cached, 1)), 0.0), least_s)
    return Serving(
        prefill_s=np.asarray(prefill_s.mean()),
        tpot_s=np.asarray(tpot_s, np.float64),
        output_len=np.asarray(output_len, np.float64),
        batch_size=np.asarray(batch_size, np.float64),
        replicas=deployment.replicas,
        queue_s=queue_s,
    )
