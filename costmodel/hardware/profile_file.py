"""Reading and writing hardware profiles as YAML files."""

from __future__ import annotations

import re
from dataclasses import asdict, replace
from datetime import date
from pathlib import Path
from typing import Any

from ..base.files import read_text
from ..base.yaml_text import load_mapping, load_shipped, render_yaml
from ..kernels.attention import AttentionLaw
from ..kernels.collectives import AllreduceLaw
from ..kernels.experts import ExpertLaw
from ..kernels.gemm import GemmLaw
from ..kernels.quantised import QuantisedLaw
from .profile import Calibration, EngineLaw, Fit, HardwareProfile, Peak

SCHEMA_VERSION = 2
FIT_LISTS = ("fitted", "model_kinds", "weight_dtypes", "parallel")


def parse_profile(text: str, *, where: str) -> HardwareProfile:
    """Parse the YAML text of a profile.

    Args:
        text: Content of the file.
        where: The file, for error messages.

    Raises:
        InputError: Lists every problem with its key.
    """
    from ..base.validation import validate_mapping  # pydantic is slow to import
    from .profile_schema import ProfileFile

    raw = load_mapping(text, where, "a hardware profile: a mapping with name, peak and sources")
    file = validate_mapping(ProfileFile, raw, where)
    peak = Peak(**file.peak.model_dump())
    return HardwareProfile(
        name=file.name,
        description=file.description,
        peak=peak,
        calibration=file.calibration or Calibration.default(peak),
        sources=file.sources,
        aliases=file.aliases,
        driver_names=file.driver_names,
        text=text,
    )


def shipped_profile(text: str) -> HardwareProfile:
    """Parse the YAML text of a shipped profile. Tests validate all of them, so that a start does not have to.

    Args:
        text: Content of the file.
    """
    raw = load_shipped(text)
    peak = Peak(**raw["peak"])
    return HardwareProfile(
        name=raw["name"],
        description=raw["description"],
        peak=peak,
        calibration=_shipped_calibration(raw["calibration"]) if "calibration" in raw else Calibration.default(peak),
        sources=raw["sources"],
        aliases=tuple(raw.get("aliases", ())),
        driver_names=tuple(raw.get("driver_names", ())),
        text=text,
    )


def _shipped_calibration(raw: dict[str, Any]) -> Calibration:
    table_attention = raw.get("table_attention")
    return Calibration(
        gemm=GemmLaw(**raw.get("gemm", {})),
        attention=AttentionLaw(**raw.get("attention", {})),
        allreduce=AllreduceLaw(**raw.get("allreduce", {})),
        engine=EngineLaw(**raw.get("engine", {})),
        quantised=QuantisedLaw(**raw["quantised"]) if "quantised" in raw else None,
        verify_attention=AttentionLaw(**raw["verify_attention"]) if "verify_attention" in raw else None,
        table_attention=None if table_attention is None else AttentionLaw(**table_attention),
        fits=tuple(Fit(**{**fit, **{key: tuple(fit.get(key, ())) for key in FIT_LISTS}}) for fit in raw.get("fits", ())),
        peaks=raw.get("peaks", ""),
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
        "driver_names": list(profile.driver_names),
        "peak": asdict(profile.peak),
        "sources": profile.sources,
        "sources_read": sources_read,
    }
    text = render_yaml(raw)
    made_for = replace(profile.calibration, peaks=profile.peak.digest)
    return with_calibration(text, made_for) if profile.calibrated else text


def with_calibration(text: str, calibration: Calibration) -> str:
    """Replace the calibration block of a profile's YAML text; everything written by hand stays unchanged."""
    values = asdict(calibration)
    if calibration.experts == ExpertLaw():
        del values["experts"]  # not fitted to this machine
    block = render_yaml({"calibration": _without_empty(values)})
    kept = re.sub(r"(?m)^calibration:.*\n?(?:[ \t].*\n?|\n)*", "", text)
    return kept.rstrip("\n") + "\n" + block


def _without_empty(value: object) -> object:
    """Convert to YAML types: tuples become lists; None and empty mappings are dropped."""
    if isinstance(value, dict):
        return {key: _without_empty(item) for key, item in value.items() if item is not None and item not in ({}, (), "")}
    return [_without_empty(item) for item in value] if isinstance(value, tuple) else value
