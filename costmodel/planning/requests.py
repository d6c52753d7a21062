"""Whole requests of a candidate: throughput and speedup end to end, and what tokens cost."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from ..plans.plan import PredictedServing
from ..plans.trace import RequestTrace
from ..plans.workload import Workload
from ..speculation.deployment import Deployment
from ..speculation.serving import Serving, serving
from .search import Candidate


@dataclass(frozen=True)
class Cost:
    """What tokens cost on machines that are always busy. [dollars]

    Attributes:
        per_request: A request, from prompt to last token.
        per_million_tokens: A million tokens, prompts and outputs counted alike.
        per_million_input_tokens, per_million_output_tokens: A million of each, from the time of prefill and of decoding.
    """

    per_request: float
    per_million_tokens: float
    per_million_input_tokens: float
    per_million_output_tokens: float


@dataclass(frozen=True)
class Requests:
    """The requests that a plan is for.

    Attributes:
        deployment: Model and machine.
        prompt_lens: Prompt lengths, in groups of one share each. [tokens]
        prompt_len, output_len: Mean lengths. [tokens]
        cached_share: Share of each prompt whose KV cache is there already. [0-1]
        queue_s: Time that a request waits before its prefill. [s]
    """

    deployment: Deployment
    prompt_lens: tuple[float, ...]
    prompt_len: float
    output_len: float
    cached_share: float = 0.0
    queue_s: float = 0.0

    def served(self, batch_size: int, tpot_s: float) -> Serving:
        """End-to-end metrics at a batch size and a time per output token. [sequences, s]"""
        return replace(self._alone, batch_size=np.asarray(batch_size, np.float64), tpot_s=np.asarray(tpot_s, np.float64))

    @cached_property
    def _alone(self) -> Serving:
        """One sequence at a time: prefill, which does not depend on batch and strategy, is priced once."""
        return serving(
            self.deployment,
            prompt_lens=self.prompt_lens,
            output_len=self.output_len,
            batch_size=1,
            tpot_s=1.0,
            cached_share=self.cached_share,
            queue_s=self.queue_s,
        )

    def speedup(self, candidate: Candidate) -> tuple[float, float, float]:
        """Low end, middle and high end of the throughput over that without speculation, prompts included. [ratio]

        The time of prefill is the same with and without; so is its error.
        """
        plain_s = candidate.steps["predicted_target_step_s"]
        plain = float(self.served(candidate.batch_size, plain_s).cycle_s)
        gains = (candidate.speedup_low, candidate.speedup, candidate.speedup_high)
        low, middle, high = (plain / float(self.served(candidate.batch_size, plain_s / gain).cycle_s) for gain in gains)
        return low, middle, high

    def cost(self, batch_size: int, tpot_s: float, gpu_price: float) -> Cost:
        """What tokens cost. [dollars]

        Args:
            batch_size: Sequences over all replicas.
            tpot_s: Time per output token. [s]
            gpu_price: Price of a GPU. [dollars per hour]
        """
        per_s = gpu_price * self.deployment.num_gpus / 3600
        served = self.served(batch_size, tpot_s)
        prompts = per_s * float(served.prefill_s) / self.deployment.replicas
        outputs = per_s * self.output_len * tpot_s / batch_size
        return Cost(
            per_request=prompts + outputs,
            per_million_tokens=1e6 * (prompts + outputs) / (self.prompt_len + self.output_len),
            per_million_input_tokens=1e6 * prompts / self.prompt_len,
            per_million_output_tokens=1e6 * outputs / self.output_len,
        )


def requests_of(
    deployment: Deployment, workload: Workload, trace: RequestTrace | None, *, cached_share: float = 0.0, queue_s: float = 0.0
) -> Requests:
    """The requests of a workload, or of a trace of mixed lengths."""
    if trace is None:
        return Requests(
            deployment, (float(workload.context_len),), workload.context_len, workload.output_len, cached_share, queue_s
        )
    lens = tuple(float(length) for length in np.atleast_1d(trace.prompt_groups()))
    outputs = float(np.mean(trace.output_lens))
    return Requests(deployment, lens, float(np.mean(trace.prompt_lens)), outputs, cached_share, queue_s)


def predicted_serving(requests: Requests, best: Candidate, *, output_len_assumed: bool = False) -> PredictedServing:
    """Whole requests with a strategy and without speculation, as plans carry them."""
    fast = requests.served(best.batch_size, best.tpot_s)
    slow = requests.served(best.batch_size, best.steps["predicted_target_step_s"])
    low, middle, high = requests.speedup(best)
    return PredictedServing(
        predicted_ttft_s=float(fast.ttft_s),
        predicted_request_s=float(fast.request_s),
        predicted_plain_request_s=float(slow.request_s),
        predicted_throughput_tokens_per_s=float(fast.throughput_tokens_per_s),
        predicted_plain_throughput_tokens_per_s=float(slow.throughput_tokens_per_s),
        prefill_share=float(fast.prefill_share),
        predicted_speedup=middle,
        predicted_speedup_low=low,
        predicted_speedup_high=high,
        cached_share=requests.cached_share,
        queue_s=requests.queue_s,
        output_len_assumed=output_len_assumed,
    )
