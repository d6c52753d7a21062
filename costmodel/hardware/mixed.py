"""Several devices that share a model by layers, one after the other, as llama.cpp's layer split does.

Every device holds a share of the layers in proportion to its memory, so that all are full at the same time. A pass visits one
device after the other. Its time is the sum of its stages, which is what one device would take whose rates are the harmonic
means of theirs, weighted with those shares:

    t = sum_i share_i x / rate_i = x / rate,    1 / rate = sum_i share_i / rate_i

So the devices together are one device, to everything that prices a pass.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from ..base.errors import bad
from .profile import COMPUTE_DTYPES, Calibration, HardwareProfile, Peak

MAX_DEVICES = 64
STAGE_S = 3e-5  # handing the activations of a step to the next device through the host: assumed


def layer_split(profiles: Sequence[HardwareProfile], where: str = "hardware") -> HardwareProfile:
    """The profile of devices that share a model by layers.

    Devices of one kind keep their calibration; different ones are priced at default efficiencies.

    Args:
        profiles: The devices, in any order; at least two.
        where: The parameter they were given for, for error messages.

    Raises:
        InputError: There are too many.
    """
    if not 2 <= len(profiles) <= MAX_DEVICES:
        raise bad(where, "", f"2 to {MAX_DEVICES} devices in a list", str(len(profiles)))
    peaks = [profile.peak for profile in profiles]
    memory_bytes = sum(peak.memory_bytes for peak in peaks)
    shares = [peak.memory_bytes / memory_bytes for peak in peaks]

    def mean(values: Iterable[float]) -> float:
        return 1 / sum(share / value for share, value in zip(shares, values, strict=True))

    dtypes = ["float32", *(dtype for dtype in COMPUTE_DTYPES if any(dtype in peak.flop_per_s for peak in peaks))]
    peak = Peak(
        flop_per_s={dtype: mean(profile.flop_per_s(dtype) for profile in profiles) for dtype in dtypes},
        memory_bandwidth_bytes_per_s=mean(peak.memory_bandwidth_bytes_per_s for peak in peaks),
        memory_bytes=memory_bytes,
        interconnect_bandwidth_bytes_per_s=min(peak.interconnect_bandwidth_bytes_per_s for peak in peaks),
        num_sms=max(1, round(mean(peak.num_sms for peak in peaks))),
        l2_cache_bytes=min(peak.l2_cache_bytes for peak in peaks),
        interconnect="pcie",
    )
    alike = all(profile.calibration == profiles[0].calibration for profile in profiles) and profiles[0].calibrated
    calibration = profiles[0].calibration if alike else Calibration.default(peak)
    step_s = calibration.engine.step_overhead_s + STAGE_S * (len(profiles) - 1)
    names = [profile.name for profile in profiles]
    return HardwareProfile(
        name=",".join(names),
        description=f"{' and '.join(profile.description for profile in profiles)}; layers split by memory",
        peak=peak,
        calibration=replace(
            calibration, peaks=peak.digest if alike else "", engine=replace(calibration.engine, step_overhead_s=step_s)
        ),
        sources=dict.fromkeys(vars(peak), "derived: layers split by memory over " + ", ".join(names)),
        text="".join(profile.text for profile in profiles),
    )


def split_note(profiles: Sequence[HardwareProfile]) -> str:
    """One sentence on how the devices share a model."""
    memory_bytes = sum(profile.peak.memory_bytes for profile in profiles)
    shares = ", ".join(f"{profile.peak.memory_bytes / memory_bytes:.0%} on {profile.name}" for profile in profiles)
    return f"layers are split by memory ({shares}) and computed one device after the other, as llama.cpp does"
