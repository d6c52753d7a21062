"""Choosing tokens: one distribution for draft and target, and randomness that depends on the row and the position alone.

Each draw is a hash of the row's seed, the token's position and the purpose, so a row's text depends neither on the rows
beside it nor on when it was started. Temperature 0 is greedy decoding, the one-hot case; it never computes a softmax.

Shapes: B batch, G draft tokens, T = G + 1 positions that the target answered, V vocabulary; ... any leading dimensions.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from magicdec.costmodel.base.errors import InputError, Problem

from ..system.device import to_device
from .verification import accept_sampled, count_accepted

DRAFT, ACCEPT, REPLACE = 0, 1, 2  # what a draw is for: a draft token, its acceptance, the target's own token


@dataclass(frozen=True)
class Sampling:
    """How a token is chosen from logits.

    Attributes:
        temperature: Logits are divided by it; 0 takes the likeliest token.
        top_k: Only so many likeliest tokens; None for all. [tokens]
        top_p: Only the likeliest tokens that together reach this probability. [0-1]
        min_p: Only tokens at least so likely, relative to the likeliest. [0-1]
        seed: Of all draws.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        rules = [
            ("--temperature", 0 <= self.temperature < float("inf"), "0 or a positive number", self.temperature),
            ("--top-k", self.top_k is None or self.top_k >= 1, "at least 1", self.top_k),
            ("--top-p", 0 < self.top_p <= 1, "above 0 and at most 1", self.top_p),
            ("--min-p", 0 <= self.min_p <= 1, "0 to 1", self.min_p),
        ]
        if self.greedy:
            given = self.top_k is not None or self.top_p != 1 or self.min_p != 0
            rules.append(("--temperature", not given, "a positive number beside --top-k, --top-p or --min-p", self.temperature))
        problems = [Problem(option, "", expected, str(found)) for option, right, expected, found in rules if not right]
        if problems:
            raise InputError(*problems)

    @property
    def greedy(self) -> bool:
        """The likeliest token is always taken."""
        return self.temperature == 0


GREEDY = Sampling()


def logits_to_probs(logits: Tensor, sampling: Sampling) -> Tensor:
    """The distribution over the last dimension that tokens are drawn from; one-hot when greedy.

    Temperature comes first, then top-k, top-p and min-p, each on what the one before left, as engines do it.
    """
    if sampling.greedy:
        return F.one_hot(logits.argmax(-1), logits.shape[-1]).to(logits.dtype)
    scaled = (logits.double() - logits.amax(-1, keepdim=True)) / sampling.temperature  # the largest is 0: none overflows
    if sampling.top_k is not None and sampling.top_k < scaled.shape[-1]:
        least = scaled.topk(sampling.top_k, -1).values[..., -1:]
        scaled = scaled.masked_fill(scaled < least, float("-inf"))
    probs = scaled.softmax(-1)
    if sampling.top_p < 1:
        ordered, order = torch.sort(probs, dim=-1, descending=True, stable=True)
        beyond = ordered.cumsum(-1) - ordered >= sampling.top_p  # the likelier ones reach it without this one
        probs = probs.masked_fill(torch.zeros_like(beyond).scatter(-1, order, beyond), 0.0)
    if sampling.min_p > 0:
        probs = probs.masked_fill(probs < sampling.min_p * probs.amax(-1, keepdim=True), 0.0)
    return probs / probs.sum(-1, keepdim=True)


def row_seed(seed: int, name: str) -> int:
    """The seed of a row, from that of the run and the prompt's id: a signed 64-bit number."""
    return int.from_bytes(hashlib.blake2b(f"{seed}\n{name}".encode(), digest_size=8).digest(), "little", signed=True)


def uniform(seeds_B: Tensor, positions: Tensor, purpose: int) -> Tensor:
    """A number in [0, 1) for every row and position, the same whenever it is asked for.

    Args:
        seeds_B: A seed a row.
        positions: Of shape [B] or [B, T]. [tokens]
        purpose: What the number is for.

    Source:
        SplitMix64 (Steele, Lea and Flood, OOPSLA 2014), applied to the seed and then to position and purpose.
    """
    seeds = _mix(seeds_B).view(-1, *[1] * (positions.ndim - 1))
    mixed = _mix(seeds ^ _mix(positions * 4 + purpose))
    return ((mixed >> 11) & (2**53 - 1)).double() * 2.0**-53


def _mix(x: Tensor) -> Tensor:
    """SplitMix64's output function; products wrap, and shifts of signed numbers are made logical."""
    x = x + _signed(0x9E3779B97F4A7C15)
    x = (x ^ ((x >> 30) & (2**34 - 1))) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ ((x >> 27) & (2**37 - 1))) * _signed(0x94D049BB133111EB)
    return x ^ ((x >> 31) & (2**33 - 1))


def _signed(unsigned: int) -> int:
    return unsigned - 2**64 if unsigned >= 2**63 else unsigned


def draw(probs_BV: Tensor, uniform_B: Tensor) -> Tensor:
    """The token where the cumulated probability passes a number in [0, 1). Weights need not add up to 1."""
    cumulated_BV = probs_BV.double().cumsum(-1)
    tokens_B1 = torch.searchsorted(cumulated_BV, uniform_B[:, None] * cumulated_BV[:, -1:], right=True)
    last_B1 = probs_BV.shape[-1] - 1 - (probs_BV.flip(-1) > 0).int().argmax(-1, keepdim=True)  # rounding may pass the end
    return torch.minimum(tokens_B1, last_B1)[:, 0]


@dataclass(frozen=True)
class Answer:
    """What a model says of the next tokens: the likeliest alone, or all logits. To ask is to run the pass and fill the cache."""

    likeliest: Callable[[], Tensor]
    logits: Callable[[], Tensor]


class Sampler:
    """How the rows of a batch choose tokens.

    Attributes:
        sampling: The settings.
        seeds_B: The seed of each row, to be set when a prompt takes it.
    """

    def __init__(self, sampling: Sampling, batch_size: int, device: torch.device):
        self.sampling = sampling
        self.seeds_B = torch.zeros(batch_size, dtype=torch.long, device=device)

    def propose(self, answer: Answer, positions_B: Tensor) -> tuple[Tensor, Tensor | None]:
        """A draft token for each position, and the distribution it was drawn from; None for one-hot ones."""
        if self.sampling.greedy:
            return answer.likeliest(), None
        logits_BV = answer.logits()
        probs_BV = logits_to_probs(logits_BV, self.sampling)
        return draw(probs_BV, uniform(self.seeds_B, to_device(positions_B, logits_BV.device), DRAFT)), probs_BV

    def verify(
        self, draft_BG: Tensor, draft_probs_BGV: Tensor | None, answer: Answer, positions_BT: Tensor
    ) -> tuple[Tensor, Tensor]:
        """How many draft tokens stay, and what each row says instead: it emits tokens_BT[:, : accepted + 1].

        Args:
            draft_BG: Drafted tokens.
            draft_probs_BGV: What each was drawn from; None where a draft was sure of its tokens.
            answer: The target's, after the last known token and after each draft token.
            positions_BT: The positions of the tokens that these are about. [tokens]

        Returns:
            accepted_B and tokens_BT.
        """
        if self.sampling.greedy:
            target_BT = answer.likeliest()
            return count_accepted(draft_BG, target_BT), target_BT
        logits_BTV = answer.logits()
        positions_BT = to_device(positions_BT, logits_BTV.device)
        target_probs_BTV = logits_to_probs(logits_BTV, self.sampling)
        accept_BG = uniform(self.seeds_B, positions_BT[:, :-1], ACCEPT)
        accepted_B, remainder_BV = accept_sampled(draft_BG, draft_probs_BGV, target_probs_BTV, accept_BG)
        places_B1 = positions_BT.gather(1, accepted_B[:, None])
        own_B = draw(remainder_BV, uniform(self.seeds_B, places_B1[:, 0], REPLACE))
        tokens_BT = torch.cat([draft_BG, own_B[:, None]], dim=1)
        return accepted_B, tokens_BT.scatter(1, accepted_B[:, None], own_B[:, None])
