"""Profiles from measurements: this machine's CPU, kernel tables, or the published step times of a GPU."""

from __future__ import annotations

from dataclasses import asdict, replace
from datetime import date
from pathlib import Path
from typing import Any

from tqdm import tqdm

from magicdec.costmodel.base.errors import bad
from magicdec.costmodel.calibration.engine_fit import MeasuredPass, Observation, fit_passes, fit_published
from magicdec.costmodel.calibration.kernel_fits import fit_tables
from magicdec.costmodel.calibration.kernel_tables import SYSTEMS
from magicdec.costmodel.hardware.catalog import resolve_profile
from magicdec.costmodel.hardware.profile import Calibration, HardwareProfile, Peak
from magicdec.costmodel.hardware.profile_file import render_profile, with_calibration
from magicdec.costmodel.kernels.attention import AttentionLaw
from magicdec.costmodel.kernels.gemm import GemmLaw
from magicdec.costmodel.models.transformer import TransformerConfig
from magicdec.executor.measuring.cpu_probe import Probe, num_measurements, probe_cpu, read_rate, same_memory
from magicdec.executor.model.dtypes import on_cpu

from . import text
from .names import CPU, REFERENCE, find_model

# A CPU's cores stream as fast as memory allows, in any division of the work, and nothing is launched.
CPU_START = Calibration(
    gemm=GemmLaw(launch_s=0.0, depth_s=0.0),
    attention=AttentionLaw(
        launch_s=0.0, sm_bytes_per_s=1e12, wave_s=0.0, merge_s=0.0, split_s=0.0, tile_rows=4096, instruction_rows=1
    ),
)
TRIES = 3  # at a steady measurement
CPU_PARAMETERS = (
    "gemm.memory_efficiency",
    "gemm.compute_efficiency",
    "attention.memory_efficiency",
    "attention.compute_efficiency",
    "attention.sharpness",
    "engine.layer_overhead_s",
)


def steady_probe(config: TransformerConfig) -> Probe:
    """What is measured while memory stays as fast as it was at the beginning; after some tries whatever is measured."""
    for _ in range(TRIES):
        before = read_rate()
        with tqdm(total=num_measurements(), desc="measuring this CPU", leave=False, disable=None) as bar:
            probe = probe_cpu(config, progress=bar.update)
        if same_memory(probe.memory_bandwidth_bytes_per_s, before):
            break
    return probe


def measure_cpu() -> HardwareProfile:
    """This machine's CPU: peaks and efficiencies, from passes of the reference model's shape at contexts up to 4096."""
    config = on_cpu(find_model(REFERENCE).config)
    probe = steady_probe(config)
    peak = Peak(
        flop_per_s=probe.flop_per_s,
        memory_bandwidth_bytes_per_s=probe.memory_bandwidth_bytes_per_s,
        memory_bytes=probe.memory_bytes,
        interconnect_bandwidth_bytes_per_s=probe.memory_bandwidth_bytes_per_s,
        num_sms=probe.cores,
        l2_cache_bytes=probe.cache_bytes,
    )
    engine = replace(CPU_START.engine, round_overhead_s=probe.round_overhead_s)
    profile = HardwareProfile(
        name=CPU,
        description=probe.description,
        peak=peak,
        calibration=replace(CPU_START, engine=engine),
        sources=dict.fromkeys(vars(peak), "measured by magicdec on this machine"),
    )
    observations = [
        Observation((MeasuredPass(config, seen.batch_size, seen.query_len, seen.context_len),), seen.measured_s)
        for seen in probe.passes
    ]
    return fit_passes(profile, observations, CPU_PARAMETERS, data="passes of the reference model's shape, measured here")


def write_profile(profile: HardwareProfile, file: Path) -> None:
    """Write a profile, making its folder."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(render_profile(profile, date.today()), encoding="utf-8")


def calibration_text(
    from_published: str | None, tables: Path | None = None, system: str | None = None, profile_name: str | None = None
) -> tuple[dict[str, Any], str, str]:
    """A freshly fitted profile: as a document, as text for people, and as the YAML file."""
    if tables is not None:
        if system not in SYSTEMS:
            raise bad("--system", "", f"a system whose tables are known ({', '.join(SYSTEMS)})", repr(system))
        known = resolve_profile(profile_name or SYSTEMS[system].profile)
        profile = fit_tables(tables, system, known)
    elif from_published is not None:
        known = resolve_profile(from_published)
        profile = fit_published(known)
    else:
        known, profile = None, measure_cpu()
    rendered = with_calibration(known.text, profile.calibration) if known else render_profile(profile, date.today())
    return asdict(profile), _words(profile), rendered


def _words(profile: HardwareProfile) -> str:
    parts = [profile.description]
    for fit in profile.calibration.fits:
        rows = [[name, f"{_value(profile.calibration, fit.part, name):.3g}"] for name in fit.fitted]
        errors = (
            f"{fit.num_points} points; error median {fit.median_error:.1%}, mean {fit.mean_error:.1%}, worst {fit.worst_error:.0%}"
        )
        parts += ["", f"{fit.data}: {errors}", "", text.table([f"fitted ({fit.part})", "value"], rows)]
    return "\n".join(parts)


def _value(calibration: Calibration, part: str, name: str) -> float:
    """A fitted parameter: whole passes name its law, kernel tables do not; the table's attention may not be the engine's."""
    owner, _, key = name.rpartition(".")
    law = getattr(calibration, owner or part)
    if part == "attention" and calibration.table_attention is not None:
        law = calibration.table_attention
    return float(getattr(law, key))
