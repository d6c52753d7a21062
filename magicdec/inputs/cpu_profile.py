"""The profile of this machine's CPU: measured once, kept in the user's cache folder."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

from magicdec.costmodel.hardware.profile import Calibration, EngineLaw, HardwareProfile, Peak
from magicdec.costmodel.hardware.profile_file import SCHEMA_VERSION, render_profile
from magicdec.costmodel.kernels.attention import AttentionLaw
from magicdec.costmodel.kernels.gemm import GemmLaw
from magicdec.costmodel.models.transformer import TransformerConfig

from .. import __version__
from ..files.writing import write_text

if TYPE_CHECKING:
    from magicdec.costmodel.calibration.engine_fit import Observation
    from magicdec.executor.measuring.loop_probe import LoopTimes, RoundTimes

CPU = "cpu"
BarMaker = Callable[[int, str, str], AbstractContextManager[Callable[[int], object]]]  # of total, title and unit
# A CPU's cores stream as fast as memory allows, in any division of the work, and nothing is launched.
CPU_START = Calibration(
    gemm=GemmLaw(launch_s=0.0, depth_s=0.0),
    engine=EngineLaw(cold_pass_s=3e-4),
    attention=AttentionLaw(
        launch_s=0.0, sm_bytes_per_s=1e12, wave_s=0.0, merge_s=0.0, split_s=0.0, tile_rows=4096, instruction_rows=1
    ),
)
CPU_PARAMETERS = (
    "gemm.memory_efficiency",
    "gemm.compute_efficiency",
    "attention.memory_efficiency",
    "attention.compute_efficiency",
    "attention.sharpness",
    "engine.layer_overhead_s",
    "engine.cold_pass_s",
)
TRIES = 3  # at a measurement during which memory keeps its speed


def cpu_profile_file() -> Path:
    """Where the profile is kept; another processor, core count, torch, kernel source or setting has another file."""
    import hashlib  # slow to import, like the next one
    from importlib.metadata import version

    from magicdec.executor.kernels.build import compiler, sources
    from magicdec.executor.system.cache_dir import cache_folder
    from magicdec.executor.system.machine import processor_name

    settings = [
        os.environ.get(name, "") for name in ("OMP_NUM_THREADS", "GOMP_SPINCOUNT", "MAGICDEC_CPU_KERNEL", "MAGICDEC_CFLAGS")
    ]
    facts = [processor_name(), str(os.cpu_count()), *settings, version("torch"), __version__, str(SCHEMA_VERSION)]
    facts += [str(compiler()), *sources().values()]
    key = hashlib.sha256("\n".join(facts).encode()).hexdigest()[:12]
    return cache_folder() / f"cpu-{key}.yaml"


@contextmanager
def _bar(total: int, title: str, unit: str) -> Iterator[Callable[[int], object]]:
    """A bar on a terminal, which yields what to call with the number of units done since the last call."""
    from tqdm import tqdm

    with tqdm(total=total, desc=title, unit=unit, leave=False, disable=None) as bar:
        yield bar.update


def measure_cpu(model: TransformerConfig, bar: BarMaker | None = None) -> HardwareProfile:
    """Measure this machine's CPU on passes of a model's shape, at contexts up to 4096, and fit a profile to them.

    While memory changes its speed during a measurement, the measurement is repeated, up to three times.
    """
    from magicdec.executor.kernels.build import kernels
    from magicdec.executor.measuring.cpu_probe import num_measurements, probe_cpu, read_rate, same_memory
    from magicdec.executor.model.dtypes import cpu_execution

    config = cpu_execution(model, kernels=kernels() is not None)
    for _ in range(TRIES):
        before = read_rate()
        with (bar or _bar)(num_measurements(), "measuring this CPU", "measurement") as advance:
            probe = probe_cpu(config, progress=lambda: advance(1))
        if same_memory(probe.memory_bandwidth_bytes_per_s, before):
            break
    peak = Peak(
        flop_per_s=probe.flop_per_s,
        memory_bandwidth_bytes_per_s=probe.memory_bandwidth_bytes_per_s,
        memory_bytes=probe.memory_bytes,
        interconnect_bandwidth_bytes_per_s=probe.memory_bandwidth_bytes_per_s,
        num_sms=probe.cores,
        l2_cache_bytes=probe.cache_bytes,
    )
    profile = HardwareProfile(
        name=CPU,
        description=probe.description,
        peak=peak,
        calibration=CPU_START,
        sources=dict.fromkeys(Peak.__dataclass_fields__, "measured by magicdec on this machine"),
    )
    return fit_rounds(profile, config, probe.times, data="rounds of a model of the reference model's shape, measured here")


def fit_rounds(profile: HardwareProfile, config: TransformerConfig, times: LoopTimes, *, data: str) -> HardwareProfile:
    """Fit a CPU's profile to measured rounds of the decoding loop.

    Args:
        profile: What to start from; its peaks stay.
        config: The model whose rounds were measured.
        times: The rounds.
        data: Description of the measurements, for the profile.
    """
    from magicdec.costmodel.calibration.engine_fit import fit_passes
    from magicdec.costmodel.calibration.fitting import rounded

    observations = [seen for one in times.rounds for seen in _observations(one, config)]
    fitted = fit_passes(profile, observations, CPU_PARAMETERS, data=data)
    engine = fitted.calibration.engine
    copying = times.copy_bytes_per_s(config.kv_bytes_per_token) / profile.peak.memory_bandwidth_bytes_per_s
    engine = replace(
        engine,
        round_overhead_s=rounded(max(times.round_overhead_s, 0.0)),
        copy_efficiency=rounded(min(copying, 1.0)),
    )
    return replace(fitted, calibration=replace(fitted.calibration, engine=engine))


def _observations(one: RoundTimes, config: TransformerConfig) -> list[Observation]:
    """An autoregressive round as one pass, or drafting and verification of a speculative round."""
    from magicdec.costmodel.calibration.engine_fit import MeasuredPass, Observation

    target = MeasuredPass(config, one.batch_size, one.gamma + 1, one.context_len)
    if not one.gamma:
        return [Observation((target,), one.round_s)]
    step = replace(target, query_len=1, kv_budget=float(one.kv_budget))
    drafting = Observation((step, replace(step, times=one.gamma - 1, cold=False)), one.draft_s)
    return [drafting, Observation((target,), one.verify_s)]


def write_profile(profile: HardwareProfile, file: Path) -> None:
    """Write a profile for this user only, creating its folder."""
    write_text(str(file), render_profile(profile, date.today()))
    file.chmod(0o600)
