"""Whole requests: prompts read, tokens decoded, a batch that is kept full."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from ..passes.forward import Array
from .deployment import Deployment


@dataclass(frozen=True)
class Serving:
    """Requests from end to end, with one way of decoding; the arrays broadcast.

    A finished request's place is taken at once by the next, whose prompt is read while the others wait: in the time that a
    batch decodes one output each, as many prompts are read.

    Attributes:
        ttft_s: Reading a prompt, the queue left out. [s]
        tpot_s: Per output token, while nothing is read. [s]
        output_len: New tokens of a request. [tokens]
        batch_size: Sequences over all replicas.
        replicas: Copies of the model that share them.
    """

    ttft_s: Array
    tpot_s: Array
    output_len: Array
    batch_size: Array
    replicas: int

    @property
    def request_s(self) -> Array:
        """From a request's first to its last token read or written, alone in the queue. [s]"""
        return self.ttft_s + self.output_len * self.tpot_s

    @property
    def cycle_s(self) -> Array:
        """In which every place of the batch serves one request: all prompts and all outputs. [s]"""
        return self.output_len * self.tpot_s + self.batch_size / self.replicas * self.ttft_s

    @property
    def throughput_tokens_per_s(self) -> Array:
        """New tokens, all sequences together, prompts being read too. [tokens/s]"""
        return self.batch_size * self.output_len / self.cycle_s

    @property
    def prefill_share(self) -> Array:
        """Share of the time that goes into reading prompts. [0-1]"""
        return 1 - self.output_len * self.tpot_s / self.cycle_s


def serving(
    deployment: Deployment, *, prompt_lens: ArrayLike, output_len: ArrayLike, batch_size: ArrayLike, tpot_s: ArrayLike
) -> Serving:
    """Whole requests decoded at `tpot_s`; of several prompt lengths the mean time counts.

    Args:
        deployment: Model and machine.
        prompt_lens: Of the requests. [tokens]
        output_len: New tokens of a request, on average. [tokens]
        batch_size: Sequences decoded together over all replicas.
        tpot_s: Seconds per output token. [s]
    """
    lengths = np.atleast_1d(np.asarray(prompt_lens, np.float64))
    return Serving(
        ttft_s=np.asarray(deployment.ttft_s(lengths).mean()),
        tpot_s=np.asarray(tpot_s, np.float64),
        output_len=np.asarray(output_len, np.float64),
        batch_size=np.asarray(batch_size, np.float64),
        replicas=deployment.replicas,
    )
