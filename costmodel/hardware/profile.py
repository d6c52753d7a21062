"""What a machine can do: peaks from its datasheet and, where it was measured, how much of them is reached.

A profile is a YAML file; `hardware_profiles/README.md` has the table of its fields.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from dataclasses import asdict, dataclass, field
from datetime import date
from functools import cache
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import pydantic
import yaml
from annotated_types import Interval

from ..base.errors import InputError, Problem, bad, from_pydantic
from ..base.yaml_text import load_mapping
from ..kernels.attention import AttentionLaw
from ..kernels.collectives import AllreduceLaw
from ..kernels.gemm import GemmLaw

SCHEMA_VERSION = 2
SIXTEEN_BITS = ("bfloat16", "float16")
# In which types products with weights of a type may run, best first: what has no rate of its own is widened on the way.
COMPUTED_IN = {
    "fp8": ("fp8", *SIXTEEN_BITS),
    "int8": ("int8", *SIXTEEN_BITS),
    "int4": SIXTEEN_BITS,
    "mxfp4": SIXTEEN_BITS,
    "bfloat16": SIXTEEN_BITS,
    "float16": ("float16", "bfloat16"),
    "float64": ("float64",),
}


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
class EngineLaw:
    """What a decoding engine adds to its kernels.

    Attributes:
        layer_overhead_s: Norms, rotary embedding, cache writes, copies and gaps, per layer. [s]
        step_overhead_s: The same, per pass. [s]
        round_overhead_s: Host work per speculative round: acceptance, bookkeeping. [s]
        logit_passes: How often choosing tokens goes over all logits: written, and read at least twice. [times]
        head_sharded: It splits the LM head over the GPUs; else each holds and reads all of it.
        draft_rereads_last: After a round in which some sequence accepted every draft token, the first draft step of the
            next reads two tokens per sequence, for the draft has not seen the last one yet.
        verify_wait: Share of a verification that passes before the next draft step begins, for GPUs that finish later. [0-1]
    """

    layer_overhead_s: Annotated[float, Interval(ge=0.0, le=1e-2)] = 3e-5
    step_overhead_s: Annotated[float, Interval(ge=0.0, le=1e-1)] = 0.0
    round_overhead_s: Annotated[float, Interval(ge=0.0, le=1e-1)] = 1e-3
    logit_passes: Annotated[float, Interval(ge=1.0, le=200.0)] = 3.0
    head_sharded: bool = True
    draft_rereads_last: bool = False
    verify_wait: Annotated[float, Interval(ge=0.0, le=0.2)] = 0.0

    __pydantic_config__: ClassVar[dict[str, object]] = {"extra": "forbid"}  # in profile files


@dataclass(frozen=True)
class Fit:
    """Where one part of a calibration comes from and how well it describes its data.

    Attributes:
        part: `gemm`, `attention`, `allreduce`, or `engine` for whole passes.
        data: The measurements.
        fitted: The parameters that were fitted.
        num_points: Measurements fitted.
        median_error, mean_error, worst_error: Absolute relative residuals, where possible of points left out of a fit. [0-1]
        date: Of the fit.
        large_mean_error: Of `attention`: mean error of calls that read at least 64 MB, of at least 4096 entries a sequence. [0-1]
        benchmark: Parameters that describe the benchmark alone, such as what it found in the L2 cache; not used in pricing.
    """

    part: Literal["gemm", "attention", "allreduce", "engine"]
    data: str
    fitted: tuple[str, ...]
    num_points: int
    median_error: float
    mean_error: float
    worst_error: float
    date: str
    large_mean_error: float | None = None
    benchmark: dict[str, float] = field(default_factory=dict)

    __pydantic_config__: ClassVar[dict[str, object]] = {"extra": "forbid"}  # in profile files


@dataclass(frozen=True)
class Calibration:
    """How much of the peaks is reached, and what passes spend beside. The defaults are stated, conservative guesses for a GPU
    under CUDA graphs; every parameter has a meaning of its own.

    Attributes:
        gemm: Matrix products with weights.
        attention: Attention over the KV cache.
        allreduce: Collectives.
        engine: What an engine adds.
        table_attention: The kernel that was fitted to tables, where the engine that was measured runs another.
        fits: Where the numbers come from; none for the defaults.
    """

    gemm: GemmLaw = field(default_factory=GemmLaw)
    attention: AttentionLaw = field(default_factory=AttentionLaw)
    allreduce: AllreduceLaw = field(default_factory=AllreduceLaw)
    engine: EngineLaw = field(default_factory=EngineLaw)
    table_attention: AttentionLaw | None = None
    fits: tuple[Fit, ...] = ()

    __pydantic_config__: ClassVar[pydantic.ConfigDict] = pydantic.ConfigDict(extra="forbid", allow_inf_nan=False)

    def fit_of(self, part: str) -> Fit | None:
        """Where a part comes from; None if it is default."""
        return next((fit for fit in self.fits if fit.part == part), None)


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
        text: The profile file as it was read.
    """

    name: str
    description: str
    peak: Peak
    calibration: Calibration = field(default_factory=Calibration)
    sources: dict[str, str] = field(default_factory=dict)
    aliases: tuple[str, ...] = ()
    text: str = ""

    @property
    def sha256(self) -> str:
        """Of the profile file, so that a plan can say what it was made with."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    @property
    def calibrated(self) -> bool:
        """Whole passes were measured, or at least the kernels they consist of; else prices rest on default efficiencies."""
        return bool(self.calibration.fits)

    @property
    def provenance(self) -> str:
        """What the prices rest on, for people."""
        engine, attention = self.calibration.fit_of("engine"), self.calibration.fit_of("attention")
        if engine is not None:
            return f"calibrated on {engine.data}: mean error {engine.mean_error:.1%}, worst {engine.worst_error:.0%}"
        if attention is not None:
            median, mean = attention.median_error, attention.mean_error
            kernels = f"kernels calibrated on public tables ({attention.data}: median error {median:.1%}, mean {mean:.1%})"
            return f"{kernels}; what an engine adds to them is assumed"
        return "not calibrated: priced at stated default efficiencies, step times within about 25 %"

    def flop_per_s(self, dtype: str) -> float:
        """Peak of products whose weights have a type. [FLOP/s]"""
        rates = self.peak.flop_per_s
        return next((rates[name] for name in COMPUTED_IN.get(dtype, ()) if name in rates), rates["float32"])

    def ridge_point(self, dtype: str) -> float:
        """Arithmetic intensity above which a pass is compute-bound, by the datasheet. [FLOP/byte]"""
        return self.flop_per_s(dtype) / self.peak.memory_bandwidth_bytes_per_s


class _Strict(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, defer_build=True)


Positive = pydantic.PositiveFloat
AtLeastGiga = pydantic.Field(ge=1e9)  # less is a forgotten prefix


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


class _ProfileFile(_Strict):
    schema_version: Literal[2]
    name: str
    description: str
    aliases: list[str] = []
    peak: _PeakFile
    sources: dict[str, str]
    sources_read: date
    calibration: Calibration | None = None

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
        file = _ProfileFile.model_validate_json(json.dumps(raw, default=str), strict=True)  # JSON: mappings may be values
    except pydantic.ValidationError as error:
        raise from_pydantic(error, where) from None
    return HardwareProfile(
        name=file.name,
        description=file.description,
        peak=Peak(**file.peak.model_dump()),
        calibration=file.calibration or Calibration(),
        sources=file.sources,
        aliases=tuple(file.aliases),
        text=text,
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
    """What YAML can hold; what is empty is left out."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items() if item is not None and item != {}}
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


@cache
def builtin_profiles() -> dict[str, Traversable]:
    """Files of the shipped profiles, by name."""
    folder = resources.files("magicdec.hardware_profiles")
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
