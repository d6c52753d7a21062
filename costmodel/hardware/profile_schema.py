"""Strict schema of profile files, for files of users."""

from __future__ import annotations

from datetime import date
from typing import Annotated, Literal

import pydantic

from ..base.validation import Line, Name, StrictModel
from .defaults import Interconnect
from .profile import Calibration

# A smaller value lacks its prefix; a larger one has one too many.
FlopRate = Annotated[float, pydantic.Field(ge=1e6, le=1e20)]
MemoryBandwidth = Annotated[float, pydantic.Field(ge=1e9, le=1e17)]
MemorySize = Annotated[float, pydantic.Field(ge=1e9, le=1e17)]
LinkBandwidth = Annotated[float, pydantic.Field(ge=1e6, le=1e17)]
CacheSize = Annotated[float, pydantic.Field(ge=1e3, le=1e15)]
Cores = Annotated[int, pydantic.Field(ge=1, le=1_000_000)]


class PeakFile(StrictModel):
    """The datasheet figures of a profile file; the keys are those of `Peak`."""

    flop_per_s: dict[Literal["float64", "float32", "tf32", "bfloat16", "float16", "fp8", "fp4", "int8", "int4"], FlopRate]
    memory_bandwidth_bytes_per_s: MemoryBandwidth
    memory_bytes: MemorySize
    interconnect_bandwidth_bytes_per_s: LinkBandwidth
    num_sms: Cores
    l2_cache_bytes: CacheSize
    interconnect: Interconnect = "fabric"

    @pydantic.field_validator("flop_per_s")
    @classmethod
    def _has_float32(cls, rates: dict[str, float]) -> dict[str, float]:
        if "float32" not in rates:
            raise ValueError("rates that include float32")
        return rates


class ProfileFile(StrictModel):
    """A profile file.

    Attributes:
        schema_version: Version of this format.
        name, description, aliases, driver_names, peak, sources, calibration: As in `HardwareProfile`.
        sources_read: Date on which the datasheet figures were last checked.
    """

    schema_version: Literal[2]
    name: Name
    description: Line
    aliases: tuple[Name, ...] = ()
    driver_names: tuple[Name, ...] = ()
    peak: PeakFile
    sources: dict[str, str]
    sources_read: date
    calibration: Calibration | None = None

    @pydantic.field_validator("sources")
    @classmethod
    def _every_peak_has_a_source(cls, sources: dict[str, str]) -> dict[str, str]:
        missing = set(PeakFile.model_fields) - {"interconnect"} - set(sources)
        if missing:
            raise ValueError(f"a source for every key of peak (missing: {', '.join(sorted(missing))})")
        return sources
