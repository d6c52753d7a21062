"""Profiles from the table of datasheet figures: one line a machine, which becomes the text of a profile file.

The columns are explained in `hardware_profiles/README.md`.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path

from .profile import Calibration, HardwareProfile, Peak

FOLDER = Path(__file__).parents[2] / "hardware_profiles"
READ = "2026-11-28"  # when the figures were last compared with their sources
FLOP_COLUMNS = ("float64", "float32", "bfloat16", "float16", "fp8", "fp4", "int8", "int4")
PEAK_COLUMNS = (
    "memory_bandwidth_bytes_per_s",
    "memory_bytes",
    "interconnect_bandwidth_bytes_per_s",
    "num_sms",
    "l2_cache_bytes",
)
Row = Mapping[str, str]


@cache
def datasheets() -> dict[str, Row]:
    """The lines of the table, by the name of their profile."""
    return {row["name"]: row for row in _rows("datasheets.csv")}


@cache
def _documents() -> dict[str, str]:
    """What a profile says as its source, by the short name of the document."""
    return {row["document"]: f"{row['text']}: {row['url']}" if row["text"] else row["url"] for row in _rows("documents.csv")}


def _rows(file: str) -> Iterable[dict[str, str]]:
    with (FOLDER / file).open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))


def memory_options(row: Row) -> dict[int, float]:
    """Memory that a machine is sold with, and how much of it the GPU can use; empty if there is one size. [GB to bytes]"""
    pairs = (option.split("=") for option in row["memory_options"].split(";") if option)
    return {int(installed): float(usable) for installed, usable in pairs}


def datasheet_profile(name: str, memory: tuple[int, float] | None = None) -> HardwareProfile:
    """The profile of a line of the table. Its text is a profile file, to be copied and changed.

    Args:
        name: Name of the profile.
        memory: Another memory size than the usual one: as its name says it, and as the GPU can use it. [GB, bytes]
    """
    row = datasheets()[name]
    cited = {"flop_per_s": row["source"], **dict.fromkeys(PEAK_COLUMNS, row["source"])}
    cited |= dict(pair.split("=") for pair in row["other_sources"].split(";") if pair)
    peak = Peak(
        flop_per_s={dtype: float(row[dtype]) for dtype in FLOP_COLUMNS if row[dtype]},
        memory_bandwidth_bytes_per_s=float(row["memory_bandwidth_bytes_per_s"]),
        memory_bytes=memory[1] if memory else float(row["memory_bytes"]),
        interconnect_bandwidth_bytes_per_s=float(row["interconnect_bandwidth_bytes_per_s"]),
        num_sms=int(row["num_sms"]),
        l2_cache_bytes=float(row["l2_cache_bytes"]),
        interconnect=row["interconnect"],  # type: ignore[arg-type]  # tests check the table
    )
    profile = HardwareProfile(
        name=f"{name}-{memory[0]}gb" if memory else name,
        description=f"{row['description']}; here with {memory[0]} GB" if memory else row["description"],
        peak=peak,
        calibration=Calibration.default(peak),
        sources={key: _documents()[cited[key]] for key in ("flop_per_s", *PEAK_COLUMNS)},
        aliases=() if memory else tuple(_list(row["aliases"])),
        driver_names=tuple(_list(row["driver_name"])),
    )
    return replace(profile, text=_text(profile))


def _text(profile: HardwareProfile) -> str:
    """The profile as a file, in the manner of those written by hand."""
    peak = vars(profile.peak)
    lines = [
        f"# {profile.description}",
        "schema_version: 2",
        f"name: {profile.name}",
        f"description: {json.dumps(profile.description)}",
        f"aliases: {json.dumps(profile.aliases)}",
        f"driver_names: {json.dumps(profile.driver_names)}",
        "peak:",
        "  flop_per_s:            # dense, by dtype of the operands",
        *(f"    {dtype}: {_real(rate)}" for dtype, rate in profile.peak.flop_per_s.items()),
        *(f"  {key}: {peak[key] if key == 'num_sms' else _real(peak[key])}" for key in PEAK_COLUMNS),
        f"  interconnect: {profile.peak.interconnect}",
        "sources:                 # document behind each key of peak",
        *(f"  {key}: {json.dumps(document)}" for key, document in profile.sources.items()),
        f"sources_read: {READ}",
    ]
    return "\n".join(lines) + "\n"


def _list(cell: str) -> list[str]:
    return [part for part in cell.split(";") if part]


def _real(number: float) -> str:
    """As YAML reads a number with an exponent: with a dot and a sign."""
    mantissa, _, exponent = f"{number:.6e}".partition("e")
    digits = mantissa.rstrip("0")
    return f"{digits}0e{exponent}" if digits.endswith(".") else f"{digits}e{exponent}"
