"""A profile is measured while the machine is one and the same."""

import pytest

from magicdec.costmodel.calibration import engine_fit
from magicdec.costmodel.hardware.profile import HardwareProfile
from magicdec.costmodel.models.transformer import TransformerConfig
from magicdec.executor.measuring import cpu_probe
from magicdec.executor.measuring.cpu_probe import Probe
from magicdec.executor.measuring.loop_probe import LoopTimes, RoundTimes
from magicdec.inputs import cpu_profile
from magicdec.inputs.names import REFERENCE, find_model

PLAIN = RoundTimes(4, 1000, 100, 0, draft_s=0.0, verify_s=0.01, rest_s=0.001, copy_s=0.0)
SPECULATIVE = RoundTimes(4, 1000, 100, 3, draft_s=0.004, verify_s=0.013, rest_s=0.002, copy_s=0.001)


@pytest.mark.parametrize(
    ("reads", "tries"),
    [([50, 52], 1), ([50, 80, 80, 78], 2), ([80, 50, 50, 80, 80, 79], 3), ([50, 80] * cpu_profile.TRIES, cpu_profile.TRIES)],
)
def test_a_measurement_in_which_memory_changed_is_made_again(reads: list[int], tries: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read rates before and after each try; the profile is that of the last one."""
    rates, probes = iter(reads), []

    def probe(config: TransformerConfig, progress: object) -> Probe:
        probes.append(Probe("", {"float32": 1e12}, next(rates) * 1e9, 1e9, 1, 1e6, LoopTimes((PLAIN, SPECULATIVE))))
        return probes[-1]

    def unfitted(profile: HardwareProfile, *others: object, data: str) -> HardwareProfile:
        return profile

    monkeypatch.setattr(cpu_probe, "read_rate", lambda: next(rates) * 1e9)
    monkeypatch.setattr(cpu_probe, "probe_cpu", probe)
    monkeypatch.setattr(engine_fit, "fit_passes", unfitted)
    profile = cpu_profile.measure_cpu(find_model(REFERENCE).config)
    assert profile.peak.memory_bandwidth_bytes_per_s == probes[-1].memory_bandwidth_bytes_per_s
    assert len(probes) == tries
    assert next(rates, None) is None
