"""How fast this machine is right now: rounds of a random model, timed before, between and after the turns of a run.

A virtual machine's memory changes its speed within minutes, and other programs come and go. A prediction for a run is right only
if it is made from the speed that the machine has while that run goes on.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import replace
from datetime import date

from magicdec.costmodel.hardware.profile import HardwareProfile
from magicdec.costmodel.hardware.profile_file import parse_profile, render_profile
from magicdec.costmodel.models.transformer import TransformerConfig
from magicdec.costmodel.plans.strategy import Strategy
from magicdec.costmodel.plans.workload import Workload
from magicdec.executor.measuring.cpu_probe import random_model, read_rate
from magicdec.executor.measuring.loop_probe import LoopProbe, LoopShapes, LoopTimes, RoundTimes, average

from ..inputs.cpu_profile import fit_rounds

MOST_ROWS, LONGEST = 16, 8192  # workload whose rounds are timed; the cost model takes it from there
FEWER = 64 * 1024  # tokens of a batch from which three rounds of each kind are timed instead of five, which takes seconds there
READ_ELEMENTS = 32 * 2**20  # 128 MiB: far more than caches hold


class MachineSpeed:
    """Times rounds at three and six eighths of a workload's context, and fits the machine's profile to them.

    Args:
        config: The model; the timed one has its shape and random weights.
        workload: What is to be predicted.
        profile: The machine's profile, from another day.

    Raises:
        InputError: Out of memory.
    """

    def __init__(self, config: TransformerConfig, workload: Workload, profile: HardwareProfile):
        self.config, self.profile = config, profile
        contexts = tuple(max(min(workload.context_len, LONGEST) * eighths // 8, 8) for eighths in (3, 6))
        budgets = tuple(context_len // 6 for context_len in contexts)
        rows = min(workload.batch_size, MOST_ROWS)
        rounds = 3 if rows * contexts[-1] >= FEWER else 5
        self.shapes = LoopShapes((rows,), contexts, budgets, (2, 8), rounds)
        self._probe = LoopProbe(random_model(config), replace(self.shapes, gammas=(1, 10)), statistics.fmean)
        self._times: list[LoopTimes] = []
        self._bytes_per_s: list[float] = []

    def focus(self, strategy: Strategy) -> None:
        """From now on time rounds of a strategy, and forget what was timed before."""
        budgets = [min(strategy.kv_budget or context_len, context_len // 2) for context_len in self.shapes.context_lens]
        gammas = (max(strategy.gamma // 3, 1), max(strategy.gamma, 2))
        self.shapes = replace(self.shapes, kv_budgets=tuple(budgets), gammas=gammas)
        self._times, self._bytes_per_s = [], []

    def look(self, progress: Callable[[], object] = lambda: None) -> None:
        """Time the rounds once; `progress` is called `shapes.points` times."""
        self._bytes_per_s.append(read_rate(READ_ELEMENTS))
        self._times.append(self._probe.measure(self.shapes, progress))

    def now(self) -> HardwareProfile:
        """The profile, fitted to what was timed."""
        fastest = max(*self._bytes_per_s, *(self._bytes_per_s_of(one) for times in self._times for one in times.rounds))
        peak = replace(self.profile.peak, memory_bandwidth_bytes_per_s=fastest)
        data = "rounds of a model of the reference model's shape, timed in turns with the run"
        fitted = fit_rounds(replace(self.profile, peak=peak), self.config, average(self._times), data=data)
        return parse_profile(render_profile(fitted, date.today()), where="this machine")

    def _bytes_per_s_of(self, one: RoundTimes) -> float:
        """Rate at which an autoregressive round read KV entries, if nothing else took time; 0 of what caches may hold. [bytes/s]"""
        read_bytes = one.batch_size * one.context_len * self.config.kv_bytes_per_token
        from_memory = one.gamma == 0 and read_bytes > 4 * self.profile.peak.l2_cache_bytes
        return read_bytes / one.round_s if from_memory else 0.0

    @property
    def scatter(self) -> float:
        """Standard deviation, over the looks, of the time of an autoregressive round over that of a speculative one. [0-1]"""
        ratios = []
        for one in self._times:
            longest = [rounds for rounds in one.rounds if rounds.context_len == self.shapes.context_lens[-1]]
            ratios.append(longest[0].round_s / longest[-1].round_s)
        return statistics.stdev(ratios) / statistics.fmean(ratios) if len(ratios) > 1 else 0.0

    @property
    def bytes_per_s(self) -> tuple[float, float]:
        """Lowest and highest memory bandwidth that was seen. [bytes/s]"""
        return min(self._bytes_per_s), max(self._bytes_per_s)
