"""State of a batch: the rows, their tokens and KV cache, and the queue of requests that wait for a row.

Shapes: B rows, S slots.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from ..kv.cache import KvCache
from ..model.transformer import Transformer
from ..system.device import wait
from ..system.memory import available_bytes, explain_out_of_memory, too_large
from .model_runner import ModelRunner
from .prefill import prefill
from .request import Request
from .sampling import Sampler, row_seed
from .settings import GenerationSettings

OnAdmit = Callable[[Request], object]


class Batch:
    """State of a batch: tokens, KV cache and per-sequence bookkeeping.

    The cache and the seeds are on the model's device, everything else is on the host. Call `prefill` before decoding.

    Args:
        model: The target.
        requests: Requests in the order in which they are admitted.
        settings: Limits, stop conditions and sampling.
        gamma: Most draft tokens per round; the cache keeps room for them. [tokens]
        rows: Sequences decoded together; the other requests wait for a free row. None for one row per request.

    Attributes:
        limits: New tokens that each request may emit. [tokens]
        request_indices: Which request each row holds.
        waiting: Indices of the requests that wait for a row, the next one first.
        lengths_B: Committed tokens of each row, prompt included. [tokens]
        remaining_B: New tokens that each row may still emit; 0 for a finished row. [tokens]
        bytes_per_row: KV cache of one row. [bytes]
        runner: The model's passes over the cache.
        prefill_s: Time spent on prefill so far. [s]

    Raises:
        InputError: The cache does not fit into memory; the error names the largest batch that fits.
    """

    def __init__(
        self,
        model: Transformer,
        requests: Sequence[Request],
        settings: GenerationSettings,
        *,
        gamma: int = 0,
        rows: int | None = None,
    ):
        self.model, self.requests, self.settings, self.gamma = model, requests, settings, gamma
        self.limits = [request.max_new_tokens or settings.max_new_tokens for request in requests]
        rows = min(rows or len(requests), len(requests))
        longest = max(len(request.tokens) + limit for request, limit in zip(requests, self.limits, strict=True))
        capacity = longest + gamma + 1
        self.bytes_per_row = capacity * model.config.kv_bytes_per_token
        if rows * self.bytes_per_row > available_bytes(model.device):
            raise too_large(rows, self.bytes_per_row, model.device)
        with explain_out_of_memory(rows, self.bytes_per_row, model.device):
            self.cache = KvCache(model.config, rows, capacity, model.device, model.dtype)
        self.tokens_BS = torch.zeros((rows, capacity + 1), dtype=torch.long)
        self.lengths_B = torch.zeros(rows, dtype=torch.long)
        self.remaining_B = torch.zeros_like(self.lengths_B)
        self.sampler = Sampler(settings.sampling, rows, model.device)
        self.runner = ModelRunner(model)
        self.request_indices = [-1] * rows
        self.waiting = deque(range(len(requests)))
        self.prefill_s = 0.0
        self._on_admit: OnAdmit | None = None

    def __len__(self) -> int:
        return len(self.request_indices)

    def memory_explained(self) -> AbstractContextManager[None]:
        """Translate out-of-memory errors into an `InputError` that names the largest batch that fits."""
        return explain_out_of_memory(len(self), self.bytes_per_row, self.model.device, held_bytes=self.cache.nbytes)

    def row_requests(self) -> list[Request]:
        """The request of each row."""
        return [self.requests[index] for index in self.request_indices]

    def prefill(self, on_admit: OnAdmit | None = None) -> None:
        """Admit the first request of every row.

        Args:
            on_admit: Called with each request after its prefill, also with those that decoding admits later.

        Raises:
            InputError: The device runs out of memory.
        """
        self._on_admit = on_admit
        with self.memory_explained():
            for row in range(len(self)):
                self.admit(row)

    @torch.inference_mode()
    def admit(self, row: int) -> Request:
        """Admit the next waiting request into `row`: prefill all its tokens but the last, which the first round feeds."""
        started_s = time.perf_counter()
        index = self.request_indices[row] = self.waiting.popleft()
        request = self.requests[index]
        tokens_S = torch.tensor(request.tokens)
        self.tokens_BS[row, : len(tokens_S)] = tokens_S
        if len(tokens_S) > 1:
            prefill(self.model, self.cache, row, tokens_S[:-1])
        self._start(row)
        wait(self.model.device)  # otherwise the rest of the prefill would be timed as decoding
        self.prefill_s += time.perf_counter() - started_s
        if self._on_admit is not None:
            self._on_admit(request)
        return request

    def finish(self, row: int) -> list[int]:
        """Stop a row and return its new tokens; another request may then be admitted into it."""
        request = self.requests[self.request_indices[row]]
        self.remaining_B[row] = 0
        output: list[int] = self.tokens_BS[row, len(request.tokens) : int(self.lengths_B[row])].tolist()
        return output

    def compact(self, rows_B: Tensor) -> None:
        """Compact the batch to these rows, in rising order."""
        self.cache.compact(rows_B)
        self.runner.drop_graphs()
        self.tokens_BS, self.lengths_B, self.remaining_B = (
            of_rows[rows_B] for of_rows in (self.tokens_BS, self.lengths_B, self.remaining_B)
        )
        self.sampler.seeds_B = self.sampler.seeds_B[rows_B]
        self.request_indices = [self.request_indices[row] for row in rows_B.tolist()]

    @torch.inference_mode()
    def rewind(self) -> None:
        """Return to the end of the prompts without a new prefill. Every row must still hold its first request."""
        for row in range(len(self)):
            self._start(row)

    def _start(self, row: int) -> None:
        index = self.request_indices[row]
        request = self.requests[index]
        self.lengths_B[row] = len(request.tokens)
        self.remaining_B[row] = self.limits[index]
        self.sampler.seeds_B[row] = row_seed(self.sampler.sampling.seed, request.id)
