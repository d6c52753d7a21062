"""A profile is measured while the machine is one and the same."""

import pytest
from magicdec.calibration import TRIES, steady_probe

from magicdec import calibration
from magicdec.costmodel.models.transformer import TransformerConfig
from magicdec.executor.measuring.cpu_probe import Probe
from magicdec.inputs.names import REFERENCE, find_model


@pytest.mark.parametrize(
    ("reads", "tries"), [([50, 52], 1), ([50, 80, 80, 78], 2), ([80, 50, 50, 80, 80, 79], 3), ([50, 80] * TRIES, TRIES)]
)
def test_a_measurement_in_which_memory_changed_is_made_again(reads: list[int], tries: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read rates before and after each try."""
    rates, probes = iter(reads), []

    def probe(config: TransformerConfig, progress: object) -> Probe:
        probes.append(Probe("", {}, next(rates) * 1e9, 0.0, 1, 0.0, 0.0, ()))
        return probes[-1]

    monkeypatch.setattr(calibration, "read_rate", lambda: next(rates) * 1e9)
    monkeypatch.setattr(calibration, "probe_cpu", probe)
    assert steady_probe(find_model(REFERENCE).config) is probes[-1]
    assert len(probes) == tries
