"""Profiles from measurements: this machine's CPU, or the published step times of a GPU."""

from __future__ import annotations

from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

from tqdm import tqdm

from costmodel.calibrate import Observation, fit_calibration, fit_published
from costmodel.hardware import (
    Calibration,
    HardwareProfile,
    Peak,
    builtin_profiles,
    render_profile,
    resolve_profile,
    with_calibration,
)
from executor.probe import num_measurements, probe_cpu
from magicdec import text
from magicdec.names import CPU, REFERENCE, find_model

CPU_PARAMETERS = (
    "memory_efficiency",
    "attention_memory_efficiency",
    "compute_efficiency",
    "attention_compute_efficiency",
    "overlap",
    "layer_overhead_s",
)


def measure_cpu() -> HardwareProfile:
    """This machine's CPU: peaks and efficiencies, from passes of the reference model's shape at contexts up to 4096."""
    config = find_model(REFERENCE).config.with_dtype("float32")
    with tqdm(total=num_measurements(), desc="measuring this CPU", leave=False, disable=None) as bar:
        probe = probe_cpu(config, progress=bar.update)
    peak = Peak(
        flop_per_s=probe.flop_per_s,
        memory_bandwidth_bytes_per_s=probe.memory_bandwidth_bytes_per_s,
        memory_bytes=probe.memory_bytes,
        interconnect_bandwidth_bytes_per_s=probe.memory_bandwidth_bytes_per_s,
        num_sms=probe.cores,
        l2_cache_bytes=probe.cache_bytes,
    )
    start = Calibration(query_tiles=(1,), splits_kv=True, round_overhead_s=probe.round_overhead_s)
    profile = HardwareProfile(
        name=CPU,
        description=probe.description,
        peak=peak,
        calibration=start,
        sources=dict.fromkeys(vars(peak), "measured by magicdec on this machine"),
    )
    observations = [
        Observation(config, seen.batch_size, seen.query_len, seen.context_len, seen.measured_s) for seen in probe.passes
    ]
    return fit_calibration(profile, observations, CPU_PARAMETERS, data="passes of the reference model's shape, measured here")


def write_profile(profile: HardwareProfile, file: Path) -> None:
    """Write a profile, making its folder."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(render_profile(profile, date.today()), encoding="utf-8")


def calibration_text(from_published: str | None) -> tuple[dict[str, Any], str, str]:
    """A freshly fitted profile: as a document, as text for people, and as the YAML file."""
    if from_published is None:
        profile = measure_cpu()
        rendered = render_profile(profile, date.today())
    else:
        profile = fit_published(resolve_profile(from_published))
        rendered = with_calibration(builtin_profiles()[profile.name].read_text(encoding="utf-8"), profile.calibration)
    calibration, fit = profile.calibration, profile.calibration.fit
    assert fit is not None
    rows = [[name, f"{getattr(calibration, name):.3g}"] for name in fit.fitted]
    errors = f"{fit.num_points} points; error median {fit.median_error:.1%}, mean {fit.mean_error:.1%}, worst {fit.worst_error:.0%}"
    words = "\n".join([profile.description, "", text.table(["fitted", "value"], rows), "", f"{fit.data}: {errors}"])
    return asdict(profile), words, rendered
