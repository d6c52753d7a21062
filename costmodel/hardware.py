"""What a machine can do: peaks from its datasheet and, where it was measured, how much of them is reached.

A profile is a YAML file; `hardware_profiles/README.md` has the table of its fields.
"""

from __future__ import annotations

import difflib
import hashlib
import re
from dataclasses import asdict, dataclass, field
from datetime import date
from functools import cache
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, Literal

import pydantic
import yaml

from costmodel.errors import InputError, Problem, bad, from_pydantic
from costmodel.yaml_text import load_mapping

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Peak:
    """What the datasheet says; dense rates.

    Attributes:
        flop_per_s: By type of the operands. [FLOP/s]
        memory_bandwidth_bytes_per_s: Main memory of one GPU. [bytes/s]
        memory_bytes: Its capacity. [bytes]
        interconnect_bandwidth_bytes_per_s: To its peers, one direction. [bytes/s]
        num_sms: Streaming multiprocessors, compute units or cores.
        l2_cache_bytes: Last-level cache. [bytes]
    """

    flop_per_s: dict[str, float]
    memory_bandwidth_bytes_per_s: float
    memory_bytes: float
    interconnect_bandwidth_bytes_per_s: float
    num_sms: int
    l2_cache_bytes: float


@dataclass(frozen=True)
class Fit:
    """Where a calibration comes from and how well it describes its own data.

    Attributes:
        data: The measurements.
        fitted: The parameters that were fitted; the others are the stated defaults.
        num_points: Measurements fitted.
        median_error, mean_error, worst_error: Absolute relative residuals. [0-1]
        date: Of the fit.
    """

    data: str
    fitted: tuple[str, ...]
    num_points: int
    median_error: float
    mean_error: float
    worst_error: float
    date: str


@dataclass(frozen=True)
class Calibration:
    """How much of the peaks a decoding engine reaches there, and what it spends beside them.

    The defaults are stated, conservative guesses for a GPU under CUDA graphs; every parameter has a meaning of its own.

    Attributes:
        memory_efficiency: Reading weights and activations, of peak bandwidth. [0-1]
        attention_memory_efficiency: Reading KV entries, of peak bandwidth, when the processors are evenly filled. [0-1]
        compute_efficiency: Matrix products with weights, of peak FLOP/s. [0-1]
        attention_compute_efficiency: Products with keys and values, of peak FLOP/s. [0-1]
        overlap: Share of the smaller of compute and memory time that hides behind the larger. [0-1]
        query_tiles: Rows that an attention kernel pads the queries of one KV head to; beyond the last, its multiples.
        splits_kv: The attention kernel splits long KV over idle processors and balances them, as long as
            batch x KV heads fill each processor less than twice.
        layer_overhead_s: Launches and gaps, per layer. [s]
        step_overhead_s: The same, per pass. [s]
        round_overhead_s: Host work per speculative round: acceptance, bookkeeping. [s]
        allreduce_latency_s: One all-reduce of nothing. [s]
        interconnect_efficiency: Of the peak interconnect bandwidth, in an all-reduce. [0-1]
        one_shot_bytes: Payload up to which every GPU reads every other's in one exchange; a larger one is reduced
            and gathered in two, of 1/p of the payload from each peer. [bytes]
        two_shot_latency_factor: Latency of two exchanges over that of one. [ratio]
        head_sharded: The engine splits the LM head over the GPUs; else each holds and reads all of it.
        fit: Where the numbers come from; None for the defaults.
    """

    memory_efficiency: float = 0.85
    attention_memory_efficiency: float = 0.8
    compute_efficiency: float = 0.6
    attention_compute_efficiency: float = 0.6
    overlap: float = 0.7
    query_tiles: tuple[int, ...] = (16, 64, 128)
    splits_kv: bool = True
    layer_overhead_s: float = 4.0e-5
    step_overhead_s: float = 0.0
    round_overhead_s: float = 1.0e-3
    allreduce_latency_s: float = 3.0e-5
    interconnect_efficiency: float = 0.8
    one_shot_bytes: float = 262144.0
    two_shot_latency_factor: float = 1.4
    head_sharded: bool = True
    fit: Fit | None = None


@dataclass(frozen=True)
class HardwareProfile:
    """One GPU (or the machine's CPU), as the cost model sees it.

    Attributes:
        name: As in file names and on the command line.
        description: For people.
        peak: The datasheet.
        calibration: What is reached.
        sources: URL behind each key of `peak`.
        aliases: Other names users write.
        sha256: Of the profile file, so that a plan can say what it was made with.
    """

    name: str
    description: str
    peak: Peak
    calibration: Calibration = field(default_factory=Calibration)
    sources: dict[str, str] = field(default_factory=dict)
    aliases: tuple[str, ...] = ()
    sha256: str = ""

    @property
    def calibrated(self) -> bool:
        """Prices rest on measurements, not on default efficiencies."""
        return self.calibration.fit is not None

    def flop_per_s(self, dtype: str) -> float:
        """Peak of a type; a type without one computes at float32's rate. [FLOP/s]"""
        rates = self.peak.flop_per_s
        return rates.get(dtype) or rates.get({"float16": "bfloat16", "bfloat16": "float16"}.get(dtype, ""), rates["float32"])

    def ridge_point(self, dtype: str) -> float:
        """Arithmetic intensity above which a pass is compute-bound, by the datasheet. [FLOP/byte]"""
        return self.flop_per_s(dtype) / self.peak.memory_bandwidth_bytes_per_s


class _Strict(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


Positive = pydantic.PositiveFloat
AtLeastGiga = pydantic.Field(ge=1e9)  # less is a forgotten prefix
Fraction = pydantic.Field(gt=0.0, le=1.0)


class _PeakFile(_Strict):
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
            raise ValueError("a float32 rate among them")
        return rates


class _FitFile(_Strict):
    data: str
    fitted: list[str]
    num_points: pydantic.PositiveInt
    median_error: pydantic.NonNegativeFloat
    mean_error: pydantic.NonNegativeFloat
    worst_error: pydantic.NonNegativeFloat
    date: str


class _CalibrationFile(_Strict):
    memory_efficiency: float = Fraction
    attention_memory_efficiency: float = Fraction
    compute_efficiency: float = Fraction
    attention_compute_efficiency: float = Fraction
    overlap: float = pydantic.Field(ge=0.0, le=1.0)
    query_tiles: list[pydantic.PositiveInt]
    splits_kv: bool
    layer_overhead_s: pydantic.NonNegativeFloat
    step_overhead_s: pydantic.NonNegativeFloat
    round_overhead_s: pydantic.NonNegativeFloat
    allreduce_latency_s: pydantic.NonNegativeFloat
    interconnect_efficiency: float = Fraction
    one_shot_bytes: pydantic.NonNegativeFloat
    two_shot_latency_factor: float = pydantic.Field(ge=1.0)
    head_sharded: bool
    fit: _FitFile


class _ProfileFile(_Strict):
    schema_version: Literal[1]
    name: str
    description: str
    aliases: list[str] = []
    peak: _PeakFile
    sources: dict[str, str]
    sources_read: date
    calibration: _CalibrationFile | None = None

    @pydantic.field_validator("sources")
    @classmethod
    def _every_peak_has_a_source(cls, sources: dict[str, str]) -> dict[str, str]:
        missing = set(_PeakFile.model_fields) - set(sources)
        if missing:
            raise ValueError(f"a source for every key of peak; none for {', '.join(sorted(missing))}")
        return sources


def parse_profile(text: str, *, where: str) -> HardwareProfile:
    """The profile that a YAML text holds.

    Raises:
        InputError: All that is wrong with it, key by key.
    """
    raw = load_mapping(text, where, "a hardware profile: a mapping with name, peak and sources")
    try:
        file = _ProfileFile.model_validate(raw)
    except pydantic.ValidationError as error:
        raise from_pydantic(error, where) from None
    calibration = Calibration()
    if file.calibration is not None:
        facts = file.calibration.model_dump()
        fit = Fit(**{**facts.pop("fit"), "fitted": tuple(file.calibration.fit.fitted)})
        calibration = Calibration(**{**facts, "query_tiles": tuple(file.calibration.query_tiles)}, fit=fit)
    return HardwareProfile(
        name=file.name,
        description=file.description,
        peak=Peak(**file.peak.model_dump()),
        calibration=calibration,
        sources=file.sources,
        aliases=tuple(file.aliases),
        sha256=hashlib.sha256(text.encode()).hexdigest(),
    )


def load_profile(path: str | Path) -> HardwareProfile:
    """Read a profile file. Raises `InputError` when it cannot be read or is not a profile."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise bad(path, "", "a readable hardware profile", getattr(error, "strerror", None) or error) from None
    return parse_profile(text, where=str(path))


def render_profile(profile: HardwareProfile, sources_read: date) -> str:
    """The YAML text of a profile, as `parse_profile` reads it."""
    raw: dict[str, Any] = {
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
    """A profile's YAML text with its calibration block replaced; what people wrote above it stays as it is."""
    block = yaml.safe_dump({"calibration": _plain(asdict(calibration))}, sort_keys=False, allow_unicode=True, width=120)
    kept = re.sub(r"(?m)^calibration:.*\n?(?:[ \t].*\n?|\n)*", "", text)
    return kept.rstrip("\n") + "\n" + block


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return list(value) if isinstance(value, tuple) else value


@cache
def builtin_profiles() -> dict[str, Traversable]:
    """Files of the shipped profiles, by name."""
    folder = resources.files("hardware_profiles")
    files = {entry.name.removesuffix(".yaml"): entry for entry in folder.iterdir() if entry.name.endswith(".yaml")}
    return dict(sorted(files.items()))


def resolve_profile(name: str) -> HardwareProfile:
    """The profile a user means: a path to a profile file, a shipped name or one of its aliases, in any case.

    Raises:
        InputError: Nothing of that name; close ones are listed. Or the file is wrong.
    """
    if name.endswith((".yaml", ".yml")) or Path(name).is_file():
        return load_profile(name)
    wanted = name.lower().replace("_", "-")
    if wanted in builtin_profiles():
        return _builtin(wanted)
    known: dict[str, str] = {}
    for profile_name in builtin_profiles():
        known |= dict.fromkeys((profile_name, *_builtin(profile_name).aliases), profile_name)
    if wanted in known:
        return _builtin(known[wanted])
    close = difflib.get_close_matches(wanted, known, n=4, cutoff=0.3)
    hint = f"close: {', '.join(close)}; " if close else ""
    expected = f"a shipped profile ({hint}`magicdec profiles` lists all), `cpu`, or a path to a profile file"
    raise InputError(Problem("--hardware", "", expected, repr(name)))


@cache
def _builtin(name: str) -> HardwareProfile:
    file = builtin_profiles()[name]
    return parse_profile(file.read_text(encoding="utf-8"), where=f"hardware_profiles/{name}.yaml")
