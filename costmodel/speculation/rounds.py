"""What a speculative round costs and yields. Knows step times and acceptance, neither model nor hardware."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ..passes.forward import Array
from .acceptance import implied_acceptance_rate


@dataclass(frozen=True)
class Round:
    """One round of speculative decoding beside the plain step it replaces; every field broadcasts.

    Attributes:
        gamma: Draft tokens per round. [tokens]
        mean_acceptance_length: Tokens a round emits, bonus token included. [tokens]
        target_step_s: Plain decoding step of the target. [s]
        draft_step_s: One step of the draft. [s]
        verify_step_s: The target's pass over the draft tokens. [s]
        select_step_s: Choosing the KV entries the draft reads, per draft step. [s]
        first_draft_s: What the first draft step takes beyond that: it may read a second token per sequence, or wait. [s]
        overhead_s: Host work per round. [s]

    Source:
        MagicDec (arXiv 2408.11049), eq. 1-4.
    """

    gamma: Array
    mean_acceptance_length: Array
    target_step_s: Array
    draft_step_s: Array
    verify_step_s: Array
    select_step_s: Array
    first_draft_s: Array
    overhead_s: Array

    @cached_property
    def gamma_draft_step_s(self) -> Array:
        """All draft steps of a round. [s]"""
        return self.gamma * (self.draft_step_s + self.select_step_s) + np.where(self.gamma > 0, self.first_draft_s, 0.0)

    @cached_property
    def round_s(self) -> Array:
        """One round; with gamma 0 it is the plain step. [s]"""
        speculative = self.gamma_draft_step_s + self.verify_step_s + self.overhead_s
        return np.where(self.gamma > 0, speculative, self.target_step_s)

    @cached_property
    def speculative_tpot_s(self) -> Array:
        """Seconds per output token, per sequence. [s]"""
        return self.round_s / self.mean_acceptance_length

    @cached_property
    def speedup(self) -> Array:
        """Autoregressive over speculative time per output token. [ratio]"""
        return self.target_step_s / self.speculative_tpot_s

    @property
    def draft_cost(self) -> Array:
        """T_D / T_T. [ratio]"""
        return (self.draft_step_s + self.select_step_s) / self.target_step_s

    @property
    def verify_cost(self) -> Array:
        """T_V / T_T. [ratio]"""
        return self.verify_step_s / self.target_step_s

    def minimum_acceptance_rate(self, speedup: float = 1.0) -> Array:
        """The acceptance rate from which a round reaches a speedup; nan where no rate does. [0-1]

        Source:
            MagicDec (arXiv 2408.11049), section 4; Omega from Leviathan et al. (arXiv 2211.17192), eq. 1.
        """
        return implied_acceptance_rate(self.gamma, speedup * self.round_s / self.target_step_s)
