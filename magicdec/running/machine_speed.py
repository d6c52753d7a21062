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
from magicdec.executor.measuring.cpu_probe import product_rates, random_model, read_rate
from magicdec.executor.measuring.loop_probe import LoopProbe, LoopShapes, LoopTimes, RoundTimes, average

from ..inputs.cpu_profile import CPU_START, fit_rounds

MOST_ROWS, LONGEST = 16, 8192  # workload whose rounds are timed; the cost model takes it from there
FEWER = 64 * 1024  # tokens of a batch from which three rounds of each kind are timed instead of five, which takes seconds there
PRODUCT_SIZE = 1024  # of the matrices whose product shows the peak rate; takes less than a second
HEADROOM = 1.3  # attention and products of few rows may be faster than one large product; the fit finds by how much
READ_ELEMENTS = 32 * 2**20  # 128 MiB: far more than caches hold


class MachineSpeed:
    """Times rounds at three and six eighths of a workload's context, and fits the machine's profile to them.

    Args:
        config: The model; the timed one has its shape and random weights.
        workload: What is to be predicted.
        profile: The machine's profile, from another day: what the machine is, but not how fast.

    Raises:
        InputError: Out of memory.
    """

    def __init__(self, config: TransformerConfig, workload: Workload, profile: HardwareProfile):
        # Efficiencies of another day are no better a start than the usual ones, and worse if the machine was busy on that day.
        then = profile.peak.flop_per_s
        faster = HEADROOM * product_rates(PRODUCT_SIZE)["float32"] / then["float32"]
        rates = {dtype: faster * rate for dtype, rate in then.items()}
        self.profile = replace(profile, peak=replace(profile.peak, flop_per_s=rates), calibration=CPU_START)
        self.config = config
        contexts = tuple(max(min(workload.context_len, LONGEST) * eighths // 8, 8) for eighths in (3, 6))
        budgets = (max(contexts[0] // 12, 1), max(contexts[1] // 6, 1))
        self.shapes = LoopShapes((min(workload.batch_size, MOST_ROWS),), contexts, budgets, (2, 5, 8))
        self._probe = LoopProbe(random_model(config), replace(self.shapes, gammas=(1, 2, 10)), statistics.fmean)
        self._times: list[LoopTimes] = []
        self._bytes_per_s: list[float] = []

    def focus(self, strategy: Strategy) -> None:
        """From now on time rounds of a strategy, fewer of them on large batches, and forget what was timed before."""
        budgets = [min(strategy.kv_budget or context_len, context_len // 2) for context_len in self.shapes.context_lens]
        gammas = (max(strategy.gamma // 3, 1), max(strategy.gamma, 2))
        rounds = 3 if self.shapes.batch_sizes[0] * self.shapes.context_lens[-1] >= FEWER else 5
        self.shapes = replace(self.shapes, kv_budgets=tuple(budgets), gammas=gammas, rounds=rounds)
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
