"""Reading and writing hardware profiles as YAML files."""

from __future__ import annotations

import re
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Literal

import pydantic
import yaml

from ..base.files import read_text
from ..base.validation import StrictModel, validate_mapping
from ..base.yaml_text import load_mapping
from .profile import Calibration, HardwareProfile, Peak

SCHEMA_VERSION = 2
Positive = pydantic.PositiveFloat
AtLeastGiga = pydantic.Field(ge=1e9)  # a smaller value lacks its prefix


class _PeakFile(StrictModel):
    flop_per_s: dict[Literal["float64", "float32", "tf32", "bfloat16", "float16", "fp8", "fp4", "int8", "int4"], Positive]
    memory_bandwidth_bytes_per_s: float = AtLeastGiga
    memory_bytes: float = AtLeastGiga
    interconnect_bandwidth_bytes_per_s: Positive
    num_sms: pydantic.PositiveInt
    l2_cache_bytes: Positive

    @pydantic.field_validator("flop_per_s")
    @classmethod
    def _has_float32(cls, rates: dict[str, float]) -> dict[str, float]:
        if "float32" not in rates:
            raise ValueError("rates that include float32")
        return rates


class _ProfileFile(StrictModel):
    schema_version: Literal[2]
    name: str
    description: str
    aliases: tuple[str, ...] = ()
    peak: _PeakFile
    sources: dict[str, str]
    sources_read: date
    calibration: Calibration | None = None

    @pydantic.field_validator("sources")
    @classmethod
    def _every_peak_has_a_source(cls, sources: dict[str, str]) -> dict[str, str]:
        missing = set(_PeakFile.model_fields) - set(sources)
        if missing:
            raise ValueError(f"a source for every key of peak (missing: {', '.join(sorted(missing))})")
        return sources


def parse_profile(text: str, *, where: str) -> HardwareProfile:
    """Parse the YAML text of a profile.

    Args:
        text: Content of the file.
        where: The file, for error messages.

    Raises:
        InputError: Lists every problem with its key.
    """
    raw = load_mapping(text, where, "a hardware profile: a mapping with name, peak and sources")
    file = validate_mapping(_ProfileFile, raw, where)
    return HardwareProfile(
        name=file.name,
        description=file.description,
        peak=Peak(**file.peak.model_dump()),
        calibration=file.calibration or Calibration(),
        sources=file.sources,
        aliases=file.aliases,
        text=text,
    )


def load_profile(path: str | Path) -> HardwareProfile:
    """Read a profile file.

    Raises:
        InputError: The file cannot be read, or is not a profile.
    """
    return parse_profile(read_text(path, "hardware profile"), where=str(path))


def render_profile(profile: HardwareProfile, sources_read: date) -> str:
    """Render a profile as YAML text that `parse_profile` accepts.

    Args:
        profile: The profile.
        sources_read: Date on which the datasheet figures were last checked.
    """
    raw = {
        "schema_version": SCHEMA_VERSION,
        "name": profile.name,
        "description": profile.description,
        "aliases": list(profile.aliases),
        "peak": asdict(profile.peak),
        "sources": profile.sources,
        "sources_read": sources_read,
    }
    text = yaml.safe_dump(raw, sort_keys=False, allow_unicode=True, width=120)
    return with_calibration(text, profile.calibration) if profile.calibrated else text


def with_calibration(text: str, calibration: Calibration) -> str:
    """Replace the calibration block of a profile's YAML text; everything written by hand stays unchanged."""
    block = yaml.safe_dump({"calibration": _without_empty(asdict(calibration))}, sort_keys=False, allow_unicode=True, width=120)
    kept = re.sub(r"(?m)^calibration:.*\n?(?:[ \t].*\n?|\n)*", "", text)
    return kept.rstrip("\n") + "\n" + block


def _without_empty(value: object) -> object:
    """Convert to YAML types: tuples become lists; None and empty mappings are dropped."""
    if isinstance(value, dict):
        return {key: _without_empty(item) for key, item in value.items() if item is not None and item != {}}
    return [_without_empty(item) for item in value] if isinstance(value, tuple) else value
