"""A freshly fitted hardware profile."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from magicdec.costmodel.hardware.profile import Calibration, Fit, HardwareProfile

from ..files.writing import write_text
from ..render.tables import text_table
from .base import Result, Row


@dataclass(frozen=True, repr=False, eq=False)
class CalibratedProfile(Result):
    """A fitted profile.

    Attributes:
        profile: With its calibration.
        yaml: The profile file.
    """

    profile: HardwareProfile
    yaml: str

    def save(self, path: str | Path) -> None:
        """Write the profile file.

        Raises:
            InputError: It cannot be written.
        """
        write_text(str(path), self.yaml)

    @property
    def headline(self) -> str:
        return f"{self.profile.name}: {self.profile.provenance}"

    def rows(self) -> list[Row]:
        return [
            {"part": fit.part, "parameter": name, "value": _value(self.profile.calibration, fit.part, name)}
            for fit in self.profile.calibration.fits
            for name in fit.fitted
        ]

    def to_dict(self) -> dict[str, object]:
        return asdict(self.profile)

    def __str__(self) -> str:
        return "\n".join([self.profile.description, *(self._fit_text(fit) for fit in self.profile.calibration.fits)])

    def _fit_text(self, fit: Fit) -> str:
        rows = [[name, f"{_value(self.profile.calibration, fit.part, name):.3g}"] for name in fit.fitted]
        errors = (
            f"{fit.num_points} points; error median {fit.median_error:.1%}, mean {fit.mean_error:.1%}, worst {fit.worst_error:.0%}"
        )
        return f"\n{fit.data}: {errors}\n\n{text_table([f'fitted ({fit.part})', 'value'], rows)}"


def _value(calibration: Calibration, part: str, name: str) -> float:
    """A fitted parameter. Fits of whole passes name its law, fits of kernel tables do not.

    The attention kernel of the tables may not be the one of the engine.
    """
    owner, _, key = name.rpartition(".")
    law = getattr(calibration, owner or part)
    if part == "attention" and calibration.table_attention is not None:
        law = calibration.table_attention
    return float(getattr(law, key))
