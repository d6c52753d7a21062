"""Sampling: one distribution for draft and target, and random draws that depend only on request and position.

Each draw is a hash of the row's seed, the token's position and the purpose. So the text of a request depends neither on the
other rows of the batch nor on when it was admitted. Temperature 0 is greedy decoding, the one-hot case; no softmax is computed.

Shapes: B batch, G draft tokens, T = G + 1 verified positions, V vocabulary; ... any leading dimensions.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from magicdec.costmodel.base.errors import InputError, Problem

from ..system.device import to_device
from .verification import accept_sampled, count_accepted

DRAFT, ACCEPT, REPLACE = 0, 1, 2  # purposes of a draw: propose a draft token, accept it, draw the target's own token


@dataclass(frozen=True)
class Sampling:
    """How a token is chosen from the logits.

    Attributes:
        temperature: The logits are divided by it; 0 is greedy decoding.
        top_k: Top-k sampling: keep only the k most likely tokens; None for all. [tokens]
        top_p: Nucleus (top-p) sampling: keep the smallest set of most likely tokens that reaches this probability. [0-1]
        min_p: Drop tokens below min_p times the top probability. [0-1]
        seed: Seed of all draws.

    Raises:
        InputError: A value is out of range, or a filter is combined with temperature 0.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            whole = name in ("top_k", "seed")
            if not isinstance(value, int if whole else int | float) and not (name == "top_k" and value is None):
                raise InputError(Problem(name, "", "a whole number" if whole else "a number", repr(value)))
        rules = [
            ("temperature", 0 <= self.temperature < float("inf"), "0 or a positive number", self.temperature),
            ("top_k", self.top_k is None or self.top_k >= 1, "at least 1", self.top_k),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1", self.top_p),
            ("min_p", 0 <= self.min_p <= 1, "0 to 1", self.min_p),
        ]
        if self.greedy:
            filtered = self.top_k is not None or self.top_p != 1 or self.min_p != 0
            rules.append(("temperature", not filtered, "a positive number with `top_k`, `top_p` or `min_p`", self.temperature))
        problems = [Problem(name, "", expected, str(found)) for name, valid, expected, found in rules if not valid]
        if problems:
            raise InputError(*problems)

    @property
    def greedy(self) -> bool:
        """True if the argmax token is always taken."""
        return self.temperature == 0


GREEDY = Sampling()


def logits_to_probs(logits: Tensor, sampling: Sampling) -> Tensor:
    """The distribution over the last dimension that tokens are drawn from; one-hot when greedy.

    Temperature is applied first, then top-k, top-p and min-p, each to the result of the one before, as serving engines do.
    """
    if sampling.greedy:
        return F.one_hot(logits.argmax(-1), logits.shape[-1]).to(logits.dtype)
    scaled = (logits.double() - logits.amax(-1, keepdim=True)) / sampling.temperature  # the largest is 0, so exp cannot overflow
    if sampling.top_k is not None and sampling.top_k < scaled.shape[-1]:
        least = scaled.topk(sampling.top_k, -1).values[..., -1:]
        scaled = scaled.masked_fill(scaled < least, float("-inf"))
    probs = scaled.softmax(-1)
    if sampling.top_p < 1:
        ordered, order = torch.sort(probs, dim=-1, descending=True, stable=True)
        beyond = ordered.cumsum(-1) - ordered >= sampling.top_p  # more likely tokens already reach top_p
        probs = probs.masked_fill(torch.zeros_like(beyond).scatter(-1, order, beyond), 0.0)
    if sampling.min_p > 0:
        probs = probs.masked_fill(probs < sampling.min_p * probs.amax(-1, keepdim=True), 0.0)
    return probs / probs.sum(-1, keepdim=True)


def row_seed(seed: int, request_id: str) -> int:
    """The seed of a row, a signed 64-bit hash of the run's seed and the request id."""
    return int.from_bytes(hashlib.blake2b(f"{seed}\n{request_id}".encode(), digest_size=8).digest(), "little", signed=True)


def uniform(seeds_B: Tensor, positions: Tensor, purpose: int) -> Tensor:
    """A pseudo-random number in [0, 1) for each row and position. The same inputs give the same number.

    Args:
        seeds_B: Seed of each row.
        positions: Positions of shape [B] or [B, T]. [tokens]
        purpose: `DRAFT`, `ACCEPT` or `REPLACE`: different purposes give independent numbers.

    Source:
        SplitMix64 (Steele, Lea and Flood, OOPSLA 2014), applied to the seed and then to position and purpose.
    """
    seeds = _mix(seeds_B).view(-1, *[1] * (positions.ndim - 1))
    mixed = _mix(seeds ^ _mix(positions * 4 + purpose))
    return ((mixed >> 11) & (2**53 - 1)).double() * 2.0**-53


def _mix(x: Tensor) -> Tensor:
    """Output function of SplitMix64. Products wrap around; masks make the shifts of signed numbers logical."""
    x = x + _signed(0x9E3779B97F4A7C15)
    x = (x ^ ((x >> 30) & (2**34 - 1))) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ ((x >> 27) & (2**37 - 1))) * _signed(0x94D049BB133111EB)
    return x ^ ((x >> 31) & (2**33 - 1))


def _signed(unsigned: int) -> int:
    return unsigned - 2**64 if unsigned >= 2**63 else unsigned


def draw(probs_BV: Tensor, uniform_B: Tensor) -> Tensor:
    """Inverse-transform sampling: the token where the cumulative weight passes `uniform_B`. Weights need not add up to 1."""
    cumulative_BV = probs_BV.double().cumsum(-1)
    tokens_B1 = torch.searchsorted(cumulative_BV, uniform_B[:, None] * cumulative_BV[:, -1:], right=True)
    last_B1 = probs_BV.shape[-1] - 1 - (probs_BV.flip(-1) > 0).int().argmax(-1, keepdim=True)  # rounding may step past the end
    return torch.minimum(tokens_B1, last_B1)[:, 0]


class DeferredPass(Protocol):
    """A forward pass that runs when one of its methods is called, see `model_runner.ForwardPass`."""

    def greedy(self) -> Tensor:
        """Run the pass and return the argmax tokens."""
        ...

    def logits(self) -> Tensor:
        """Run the pass and return the logits."""
        ...


class Sampler:
    """Chooses the tokens of all rows of a batch.

    Args:
        sampling: The settings.
        batch_size: Number of rows. [sequences]
        device: Where the logits are.

    Attributes:
        sampling: The settings.
        seeds_B: Seed of each row; set it when a request is admitted.
    """

    def __init__(self, sampling: Sampling, batch_size: int, device: torch.device):
        self.sampling = sampling
        self.seeds_B = torch.zeros(batch_size, dtype=torch.long, device=device)

    def propose(self, forward: DeferredPass, positions_B: Tensor) -> tuple[Tensor, Tensor | None]:
        """Run a draft step and choose one draft token per row.

        Args:
            forward: The draft model's pass, one answer per row.
            positions_B: Positions of the draft tokens. [tokens]

        Returns:
            The draft tokens [B], and the distribution [B, V] they were drawn from; None if they are certain (greedy).
        """
        if self.sampling.greedy:
            return forward.greedy(), None
        logits_BV = forward.logits()
        probs_BV = logits_to_probs(logits_BV, self.sampling)
        return draw(probs_BV, uniform(self.seeds_B, to_device(positions_B, logits_BV.device), DRAFT)), probs_BV

    def verify(
        self, draft_BG: Tensor, draft_probs_BGV: Tensor | None, forward: DeferredPass, positions_BT: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Run the target's pass and accept draft tokens. Each row then emits tokens_BT[:, : accepted + 1].

        Args:
            draft_BG: Draft tokens.
            draft_probs_BGV: Distribution each was drawn from; None if they are certain.
            forward: The target's pass over the last committed token and the draft tokens.
            positions_BT: Positions of the tokens that follow these. [tokens]

        Returns:
            accepted_B, the number of accepted draft tokens, and tokens_BT, the accepted tokens and the target's own after them.
        """
        if self.sampling.greedy:
            target_BT = forward.greedy()
            return count_accepted(draft_BG, target_BT), target_BT
        logits_BTV = forward.logits()
        positions_BT = to_device(positions_BT, logits_BTV.device)
        target_probs_BTV = logits_to_probs(logits_BTV, self.sampling)
        accept_BG = uniform(self.seeds_B, positions_BT[:, :-1], ACCEPT)
        accepted_B, residual_BV = accept_sampled(draft_BG, draft_probs_BGV, target_probs_BTV, accept_BG)
        own_positions_B1 = positions_BT.gather(1, accepted_B[:, None])
        own_B = draw(residual_BV, uniform(self.seeds_B, own_positions_B1[:, 0], REPLACE))
        tokens_BT = torch.cat([draft_BG, own_B[:, None]], dim=1)
        return accepted_B, tokens_BT.scatter(1, accepted_B[:, None], own_B[:, None])
