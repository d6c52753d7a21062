"""Prompts being continued: the rows of a batch, what each holds, and the prompts that wait for a row.

Shapes: B rows, S slots.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor

from ..kv.cache import KvCache
from ..model.transformer import Transformer
from ..system.device import wait
from ..system.memory import available_bytes, explain_out_of_memory, too_large
from .model_runner import Passes
from .prefill import prefill
from .sampling import GREEDY, Sampler, Sampling, row_seed

Progress = Callable[[int], object]


@dataclass(frozen=True)
class Prompt:
    """One text to continue.

    Attributes:
        id: As in the prompts file, or its line number.
        tokens: Its token ids, at least one.
        max_new_tokens: New tokens it may get; None for as many as the others. [tokens]
        stop: Texts that end its continuation, beside the stop tokens.
        kv_budget: Entries a sparse draft reads for it; None for the strategy's. [tokens]
    """

    id: str
    tokens: list[int]
    max_new_tokens: int | None = None
    stop: tuple[str, ...] = ()
    kv_budget: int | None = None


class Batch:
    """Rows that each continue a prompt, with their tokens, their KV cache and where they stand.

    The cache and the seeds are on the model's device, all else is on the host.

    Args:
        model: The target.
        prompts: What is to be continued, in this order.
        max_new_tokens: Tokens each may emit, unless it says otherwise. [tokens]
        gamma: Most draft tokens per round, for which the cache keeps room. [tokens]
        rows: Prompts continued at once; the others wait for a row to become free. All by default.
        sampling: How tokens are chosen.

    Attributes:
        places: Which prompt each row holds, by its place among `prompts`.
        lengths_B: Known tokens of each row, its prompt included. [tokens]
        remaining_B: Tokens it may still emit; 0 for a finished row. [tokens]
        bytes_per_row: KV cache of a row. [bytes]
        passes: The model's passes over the cache.
        read_s: Time spent reading prompts. [s]
    """

    def __init__(
        self,
        model: Transformer,
        prompts: Sequence[Prompt],
        *,
        max_new_tokens: int,
        gamma: int = 0,
        rows: int | None = None,
        sampling: Sampling = GREEDY,
    ):
        self.model, self.prompts, self.gamma = model, prompts, gamma
        self.limits = [prompt.max_new_tokens or max_new_tokens for prompt in prompts]
        rows = min(rows or len(prompts), len(prompts))
        longest = max(len(prompt.tokens) + limit for prompt, limit in zip(prompts, self.limits, strict=True))
        capacity = longest + gamma + 1
        self.bytes_per_row = capacity * model.config.kv_bytes_per_token
        if rows * self.bytes_per_row > available_bytes(model.device):
            raise too_large(rows, self.bytes_per_row, model.device)
        with explain_out_of_memory(rows, self.bytes_per_row, model.device):
            self.cache = KvCache(model.config, rows, capacity, model.device, model.dtype)
        self.tokens_BS = torch.zeros((rows, capacity + 1), dtype=torch.long)
        self.lengths_B = torch.zeros(rows, dtype=torch.long)
        self.remaining_B = torch.zeros_like(self.lengths_B)
        self.sampler = Sampler(sampling, rows, model.device)
        self.passes = Passes(model)
        self.places = [-1] * rows
        self.waiting = list(range(len(prompts)))[::-1]  # the next one last
        self.read_s = 0.0
        self._outputs: list[list[int]] = [[] for _ in prompts]
        self._told: Progress = lambda row: None

    def __len__(self) -> int:
        return len(self.places)

    def memory_explained(self) -> AbstractContextManager[None]:
        """Running out of memory inside names the largest batch that would fit."""
        return explain_out_of_memory(len(self), self.bytes_per_row, self.model.device, held_bytes=self.cache.nbytes)

    def prefill(self, progress: Progress = lambda row: None) -> None:
        """Give every row its first prompt; call `progress` with the row after each prompt that is read, now or later."""
        self._told = progress
        for row in range(len(self)):
            self.take(row)

    @torch.inference_mode()
    def take(self, row: int) -> Prompt:
        """Let the next waiting prompt have a row: read all of it but its last token, which the first round feeds."""
        started = time.perf_counter()
        place = self.places[row] = self.waiting.pop()
        prompt = self.prompts[place]
        tokens_S = torch.tensor(prompt.tokens)
        self.tokens_BS[row, : len(tokens_S)] = tokens_S
        if len(tokens_S) > 1:
            prefill(self.model, self.cache, row, tokens_S[:-1])
        self._place(row)
        wait(self.model.device)  # or what is left of the reading would count as decoding
        self.read_s += time.perf_counter() - started
        self._told(row)
        return prompt

    def finish(self, row: int) -> list[int]:
        """Keep what a row has emitted and answer with it; the row emits no more, and may be taken by another prompt."""
        place = self.places[row]
        output = self.tokens_BS[row, len(self.prompts[place].tokens) : int(self.lengths_B[row])].tolist()
        self._outputs[place] = output
        self.remaining_B[row] = 0
        return output

    def keep(self, rows_B: Tensor) -> None:
        """Go on with these rows alone, in this order; the others are done."""
        self.cache.keep(rows_B)
        self.passes.forget()
        self.tokens_BS, self.lengths_B, self.remaining_B = (
            of_rows[rows_B] for of_rows in (self.tokens_BS, self.lengths_B, self.remaining_B)
        )
        self.sampler.seeds_B = self.sampler.seeds_B[rows_B]
        self.places = [self.places[row] for row in rows_B.tolist()]

    @torch.inference_mode()
    def rewind(self) -> None:
        """Back to the end of the prompts, which need not be read again: every row must still have its first one."""
        self._outputs = [[] for _ in self.prompts]
        for row in range(len(self)):
            self._place(row)

    def outputs(self) -> list[list[int]]:
        """The tokens that each finished prompt got, in the order of the prompts; none for the others."""
        return [list(output) for output in self._outputs]

    def _place(self, row: int) -> None:
        prompt = self.prompts[self.places[row]]
        self.lengths_B[row] = len(prompt.tokens)
        self.remaining_B[row] = self.limits[self.places[row]]
        self.sampler.seeds_B[row] = row_seed(self.sampler.sampling.seed, prompt.id)
