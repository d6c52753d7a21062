"""Time and yield of one speculative round, from step times and acceptance."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ..passes.forward import Array
from .acceptance import implied_acceptance_rate


@dataclass(frozen=True)
class Round:
    """One round of speculative decoding, and the autoregressive step it is compared with; arrays broadcast.

    Attributes:
        gamma: Draft tokens per round. [tokens]
        mean_acceptance_length: Output tokens per round, bonus token included. [tokens]
        target_step_s: Autoregressive step of the target. [s]
        draft_step_s: One draft step. [s]
        verify_step_s: Verification pass of the target. [s]
        select_step_s: Selecting KV entries, per draft step. [s]
        first_draft_s: Extra time of the first draft step, for a second token per sequence, waiting or cold caches. [s]
        overhead_s: Host work per round, and copying the KV entries that a draft selects. [s]

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
        """One round; for gamma 0 the autoregressive step. [s]"""
        speculative = self.gamma_draft_step_s + self.verify_step_s + self.overhead_s
        return np.where(self.gamma > 0, speculative, self.target_step_s)

    @cached_property
    def speculative_tpot_s(self) -> Array:
        """Time per output token of a sequence. [s]"""
        return self.round_s / self.mean_acceptance_length

    @cached_property
    def speedup(self) -> Array:
        """Autoregressive TPOT / speculative TPOT. [ratio]"""
        return self.target_step_s / self.speculative_tpot_s

    @property
    def draft_cost(self) -> Array:
        """Draft step / target step: T_D / T_T in the paper. [ratio]"""
        return (self.draft_step_s + self.select_step_s) / self.target_step_s

    @property
    def verify_cost(self) -> Array:
        """Verification / target step: T_V / T_T in the paper. [ratio]"""
        return self.verify_step_s / self.target_step_s

    def minimum_acceptance_rate(self, speedup: float = 1.0) -> Array:
        """Lowest acceptance rate that reaches a speedup; NaN if none does. [0-1]

        Args:
            speedup: Speedup to reach; 1 for break-even. [ratio]

        Source:
            MagicDec (arXiv 2408.11049), section 4; Omega from Leviathan et al. (arXiv 2211.17192), eq. 1.
        """
        return implied_acceptance_rate(self.gamma, speedup * self.round_s / self.target_step_s)
