"""Requests of mixed lengths, and the few groups of them that stand for all in a plan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..base.errors import InputError, Problem
from ..base.limits import MAX_TOKENS

MAX_GROUPS = 256  # a plan prices every strategy at every group
Lengths = NDArray[np.int64]
Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class RequestTrace:
    """Requests of mixed lengths, served by continuous batching. Two traces with the same requests are equal.

    Attributes:
        prompt_lens: Prompt length of each request. [tokens]
        output_lens: Output length of each request. [tokens]
        arrival_s: When each request arrived, from the first arrival on; None if that is unknown. [s]
        share: Share of the requests of the file that are in here; below 1 for a sample. [0-1]
        notes: What was left out or assumed when the file was read.

    Raises:
        InputError: There is no request, a length is not positive, or the columns have different lengths.
    """

    prompt_lens: Lengths | Sequence[int]
    output_lens: Lengths | Sequence[int]
    arrival_s: Array | Sequence[float] | None = None
    share: float = 1.0
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        problems = []
        for name in ("prompt_lens", "output_lens"):
            values = np.asarray(getattr(self, name))
            whole = values.ndim == 1 and values.size and values.dtype.kind in "iuf" and np.all(values == np.floor(values))
            if not whole or not np.all((values >= 1) & (values <= MAX_TOKENS)):
                problems.append(Problem("trace", name, f"whole numbers from 1 to {MAX_TOKENS:,}, at least one", repr(values)))
            else:
                object.__setattr__(self, name, values.astype(np.int64))
        if not problems and len(self.prompt_lens) != len(self.output_lens):
            problems.append(
                Problem("trace", "output_lens", f"{len(self.prompt_lens)}, as many as prompt_lens", str(len(self.output_lens)))
            )
        if self.arrival_s is not None and not problems:
            arrival = np.asarray(self.arrival_s, np.float64)
            if arrival.shape != np.shape(self.prompt_lens) or not np.all(np.isfinite(arrival)):
                problems.append(Problem("trace", "arrival_s", "a finite time for every request", f"{arrival.size}"))
            else:
                object.__setattr__(self, "arrival_s", arrival - arrival.min())
        if problems:
            raise InputError(*problems)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, RequestTrace):
            return NotImplemented
        same = np.array_equal(self.prompt_lens, other.prompt_lens) and np.array_equal(self.output_lens, other.output_lens)
        if self.arrival_s is None or other.arrival_s is None:
            return same and self.arrival_s is other.arrival_s
        return same and np.array_equal(self.arrival_s, other.arrival_s)

    __hash__ = None  # type: ignore[assignment]

    def __len__(self) -> int:
        return len(self.prompt_lens)

    @property
    def context_lens(self) -> Array:
        """Context of each request, halfway through its output. [tokens]"""
        return np.asarray(self.prompt_lens) + np.asarray(self.output_lens) / 2

    @property
    def max_context_lens(self) -> Lengths:
        """Context of each request after its last output token. [tokens]"""
        return np.asarray(np.asarray(self.prompt_lens) + np.asarray(self.output_lens), np.int64)

    @property
    def weights(self) -> Array:
        """Share of each request in the running batch: proportional to its output length, thus to its time in the batch. [0-1]"""
        outputs = np.asarray(self.output_lens, np.float64)
        weights: Array = outputs / outputs.sum()
        return weights

    @property
    def typical(self) -> tuple[int, int]:
        """Mean prompt length and mean output length. [tokens]"""
        return max(1, round(float(np.mean(self.prompt_lens)))), max(1, round(float(np.mean(self.output_lens))))

    @property
    def requests_per_s(self) -> float | None:
        """Mean arrival rate; None without arrival times. [1/s]"""
        if self.arrival_s is None or not np.max(self.arrival_s):
            return None
        return float((len(self) - 1) / self.share / np.max(self.arrival_s))

    def groups(self, most: int = MAX_GROUPS) -> tuple[Array, Array]:
        """Contexts and their shares in the running batch: all requests, or groups of similar ones with their means. [tokens, 0-1]

        Costs are linear in the context, so a group costs what its requests do.

        Args:
            most: Groups at most.
        """
        if len(self) <= most:
            return self.context_lens, self.weights
        order = np.argsort(self.context_lens, kind="stable")
        weights, contexts = self.weights[order], self.context_lens[order]
        group = np.minimum((np.cumsum(weights) * most).astype(np.int64), most - 1)
        shares = np.bincount(group, weights)
        means = np.bincount(group, weights * contexts)[shares > 0] / shares[shares > 0]
        return means, shares[shares > 0] / shares.sum()

    def prompt_groups(self, most: int = MAX_GROUPS) -> Array:
        """Prompt lengths: all, or the means of equally large groups of similar ones. [tokens]

        Args:
            most: Groups at most.
        """
        lengths = np.sort(np.asarray(self.prompt_lens, np.float64))
        if len(lengths) <= most:
            return np.asarray(self.prompt_lens, np.float64)
        edges = np.linspace(0, len(lengths), most + 1).astype(np.int64)
        means: Array = np.add.reduceat(lengths, edges[:-1]) / np.diff(edges)
        return means
