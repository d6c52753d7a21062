"""One GPU or CPU as the cost model sees it: datasheet peaks and calibrated efficiencies.

The fields of a profile file are listed in `hardware_profiles/README.md`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from ..base.records import STRICT, Limits, NotNegative
from ..kernels.attention import AttentionLaw
from ..kernels.collectives import AllreduceLaw
from ..kernels.experts import ExpertLaw
from ..kernels.gemm import GemmLaw
from ..kernels.quantised import QuantisedLaw
from .defaults import Interconnect, default_allreduce, default_attention

FitPart = Literal["gemm", "attention", "allreduce", "engine"]
HOST_SEQUENCES = 8  # sequences beyond which the work of the host grows no more: it is done for all at once
SIXTEEN_BITS = ("bfloat16", "float16")
# Dtypes a product may be computed in, by weight dtype, fastest first; 16 bits for any packed type. A dtype without a rate of its
# own is upcast.
COMPUTE_DTYPES = {
    "fp8": ("fp8", *SIXTEEN_BITS),
    "mxfp8": ("fp8", *SIXTEEN_BITS),
    "int8": ("int8", *SIXTEEN_BITS),
    "nvfp4": ("fp4", *SIXTEEN_BITS),
    "float16": ("float16", "bfloat16"),
    "float32": ("float32",),
    "float64": ("float64",),
}


@dataclass(frozen=True)
class Peak:
    """Datasheet figures of one device.

    Attributes:
        flop_per_s: Dense peak rate by operand dtype. [FLOP/s]
        memory_bandwidth_bytes_per_s: Device memory bandwidth. [bytes/s]
        memory_bytes: Device memory capacity. [bytes]
        interconnect_bandwidth_bytes_per_s: Bandwidth to peer GPUs, one direction. [bytes/s]
        num_sms: Streaming multiprocessors, compute units or cores.
        l2_cache_bytes: Last-level cache. [bytes]
        interconnect: What connects several devices: direct links (`fabric`: NVLink, Infinity Fabric), PCI Express (`pcie`), or a
            network between systems (`network`).
    """

    flop_per_s: dict[str, float]
    memory_bandwidth_bytes_per_s: float
    memory_bytes: float
    interconnect_bandwidth_bytes_per_s: float
    num_sms: int
    l2_cache_bytes: float
    interconnect: Interconnect = "fabric"

    @property
    def digest(self) -> str:
        """Hash of the figures, to sixteen hexadecimal digits: a calibration belongs to one."""
        import hashlib  # slow to import

        rates = ",".join(f"{dtype}={rate:.6g}" for dtype, rate in sorted(self.flop_per_s.items()))
        figures = (self.memory_bandwidth_bytes_per_s, self.interconnect_bandwidth_bytes_per_s, self.num_sms, self.l2_cache_bytes)
        return hashlib.sha256(f"{rates};{';'.join(f'{x:.6g}' for x in figures)}".encode()).hexdigest()[:16]


@dataclass(frozen=True)
class EngineLaw:
    """Overheads and habits of an inference engine, on top of its kernels.

    Attributes:
        layer_overhead_s: Norms, rotary embedding, cache writes, copies and gaps, per layer. [s]
        step_overhead_s: Fixed overhead per forward pass. [s]
        round_overhead_s: Host work per speculative round: acceptance and bookkeeping. [s]
        logit_passes: Times that sampling reads or writes all logits; at least one write and two reads. [times]
        head_sharded: The LM head is split over the GPUs; otherwise every GPU holds and reads all of it.
        draft_rereads_last: If all draft tokens of some sequence were accepted, the first draft step of the next round
            processes two tokens per sequence, because the draft has not seen the last one yet.
        cold_pass_s: What a pass that finds caches cold takes longer: each of the target, and the first draft step of a round. [s]
        copy_efficiency: Share of the memory bandwidth at which a draft copies the KV entries that it selects; 0 if not measured:
            then copies cost nothing. [0-1]
        verify_wait: Share of the verification time that passes before the next draft step starts, waiting for slower GPUs. [0-1]
        round_sequence_s: What a round takes more for each sequence, up to `HOST_SEQUENCES`. [s]
        draft_step_s: What a draft step takes beyond its pass: sampling, and starting a graph. [s]
        draft_sequence_s: The same for each sequence, up to `HOST_SEQUENCES`. [s]
        server_step_s: What a server adds to a step or round: scheduling and sampling that the next step waits for. [s]
        server_token_s: What it adds for each output token: text, streaming, and its share of reading prompts. [s]
        tree_s: What choosing a tree and its masks add to a round. [s]
        several_rows_s: What a layer takes more in a pass of several tokens, where only passes of one token run as a graph. [s]
        state_update_s: What a layer with a recurrent state takes more than the traffic of its state. [s]
        state_verify_s: What such a layer takes more where a sequence has several tokens, each with a state to go back to. [s]
    """

    layer_overhead_s: Annotated[float, Limits(ge=0.0, le=1e-2)] = 3e-5
    step_overhead_s: Annotated[float, Limits(ge=0.0, le=1e-1)] = 0.0
    round_overhead_s: Annotated[float, Limits(ge=0.0, le=1e-1)] = 1e-3
    logit_passes: Annotated[float, Limits(ge=1.0, le=200.0)] = 3.0
    head_sharded: bool = True
    draft_rereads_last: bool = False
    cold_pass_s: Annotated[float, Limits(ge=0.0, le=1e-1)] = 0.0
    copy_efficiency: Annotated[float, Limits(ge=0.0, le=1.0)] = 0.0
    verify_wait: Annotated[float, Limits(ge=0.0, le=0.2)] = 0.0
    round_sequence_s: Annotated[float, Limits(ge=0.0, le=1e-2)] = 0.0
    server_step_s: Annotated[float, Limits(ge=0.0, le=1e-1)] = 0.0
    server_token_s: Annotated[float, Limits(ge=0.0, le=1e-2)] = 0.0
    draft_step_s: Annotated[float, Limits(ge=0.0, le=1e-1)] = 0.0
    draft_sequence_s: Annotated[float, Limits(ge=0.0, le=1e-2)] = 0.0
    tree_s: Annotated[float, Limits(ge=0.0, le=1e-1)] = 0.0
    several_rows_s: Annotated[float, Limits(ge=0.0, le=1e-2)] = 0.0
    state_update_s: Annotated[float, Limits(ge=0.0, le=1e-2)] = 0.0
    state_verify_s: Annotated[float, Limits(ge=0.0, le=1e-2)] = 0.0

    __pydantic_config__ = STRICT


@dataclass(frozen=True)
class Fit:
    """Origin and quality of one fitted part of a calibration.

    Attributes:
        part: `gemm`, `attention`, `allreduce`, or `engine` for whole passes.
        data: The measurements.
        fitted: Names of the fitted parameters.
        num_points: Measurements used in the fit.
        median_error, mean_error, worst_error: Absolute relative residuals, on held-out points where there are any. [0-1]
        date: Date of the fit.
        large_mean_error: `attention` only: mean error of calls that read at least 64 MB, with at least 4096 entries per
            sequence. [0-1]
        benchmark: Parameters that describe only the benchmark, such as its L2 cache hits; predictions do not use them.
        engine: `engine` only: what ran the measured passes.
        model_kinds: `engine` only: kinds of models that were measured, of `MODEL_KINDS`; empty if that was not recorded.
        weight_dtypes: `engine` only: types of their weights.
        parallel: `engine` only: numbers of GPUs that shared a model.
    """

    part: FitPart
    data: str
    fitted: tuple[str, ...]
    num_points: Annotated[int, Limits(ge=1, le=1_000_000_000)]
    median_error: NotNegative
    mean_error: NotNegative
    worst_error: NotNegative
    date: str
    large_mean_error: NotNegative | None = None
    benchmark: dict[str, float] = field(default_factory=dict)
    engine: str = ""
    model_kinds: tuple[str, ...] = ()
    weight_dtypes: tuple[str, ...] = ()
    parallel: tuple[int, ...] = ()

    __pydantic_config__ = STRICT


@dataclass(frozen=True)
class Calibration:
    """Achieved share of the peaks, and overheads. Defaults are documented, conservative guesses for a GPU with CUDA graphs.

    Attributes:
        gemm: Matrix products with weights.
        attention: Attention over the KV cache.
        allreduce: Collectives.
        engine: Overheads of the inference engine.
        experts: Grouped products with the weights of experts.
        quantised: Products with quantised weights; None where they are priced as those of 16 bits, with fewer bytes.
        verify_attention: Attention with several queries per sequence, where an engine has another kernel for it.
        table_attention: Attention law fitted to kernel tables, if the measured engine uses a different kernel.
        fits: Origin of the numbers; empty for defaults.
        peaks: `Peak.digest` of the figures that they were fitted with; empty if that was not recorded.
    """

    gemm: GemmLaw = field(default_factory=GemmLaw)
    attention: AttentionLaw = field(default_factory=AttentionLaw)
    allreduce: AllreduceLaw = field(default_factory=AllreduceLaw)
    engine: EngineLaw = field(default_factory=EngineLaw)
    experts: ExpertLaw = field(default_factory=ExpertLaw)
    quantised: QuantisedLaw | None = None
    verify_attention: AttentionLaw | None = None
    table_attention: AttentionLaw | None = None
    fits: tuple[Fit, ...] = ()
    peaks: str = ""

    __pydantic_config__ = STRICT

    @classmethod
    def default(cls, peak: Peak) -> Calibration:
        """What is assumed of a machine with these peaks that nobody has calibrated."""
        return cls(
            attention=default_attention(peak.num_sms, peak.memory_bandwidth_bytes_per_s),
            allreduce=default_allreduce(peak.interconnect, peak.interconnect_bandwidth_bytes_per_s),
        )

    def fit_of(self, part: FitPart) -> Fit | None:
        """Return the fit of one part, or None if the part has default values."""
        return next((fit for fit in self.fits if fit.part == part), None)


@dataclass(frozen=True)
class HardwareProfile:
    """One GPU, or the CPU of a machine.

    Attributes:
        name: Name in file names and on the command line.
        description: One line for people.
        peak: Datasheet figures.
        calibration: Achieved efficiencies and overheads.
        sources: Document behind each key of `peak`.
        aliases: Other accepted names.
        driver_names: What the driver and torch call it.
        text: Text of the profile file.
    """

    name: str
    description: str
    peak: Peak
    calibration: Calibration = field(default_factory=Calibration)
    sources: dict[str, str] = field(default_factory=dict)
    aliases: tuple[str, ...] = ()
    driver_names: tuple[str, ...] = ()
    text: str = ""

    @property
    def sha256(self) -> str:
        """Digest of the profile file; plans record it."""
        import hashlib  # slow to import

        return hashlib.sha256(self.text.encode()).hexdigest()

    @property
    def calibrated(self) -> bool:
        """True if at least the kernels were measured; otherwise predictions use default efficiencies."""
        return bool(self.calibration.fits) and self.fits_its_peaks

    @property
    def fits_its_peaks(self) -> bool:
        """False if the calibration was made with other figures than those of this profile: of a copy that was changed."""
        return self.calibration.peaks in ("", self.peak.digest)

    @property
    def provenance(self) -> str:
        """One sentence on how the profile was calibrated."""
        if not self.fits_its_peaks:
            return "its calibration was fitted with other peaks than it has: taken as not calibrated"
        engine, attention = self.calibration.fit_of("engine"), self.calibration.fit_of("attention")
        if engine is not None:
            return f"calibrated on {engine.data}: mean error {engine.mean_error:.1%}, worst {engine.worst_error:.0%}"
        if attention is not None:
            median, mean = attention.median_error, attention.mean_error
            kernels = f"kernels calibrated on public tables ({attention.data}: median error {median:.1%}, mean {mean:.1%})"
            return f"{kernels}; engine overheads are defaults"
        return "datasheet: not calibrated, default efficiencies, step times accurate to about 25 %"

    @property
    def has_fp4(self) -> bool:
        """Whether products are computed in fp4; weights in fp4 are else unpacked to 16 bits."""
        return "fp4" in self.peak.flop_per_s

    def flop_per_s(self, dtype: str) -> float:
        """Peak rate of products with weights of this dtype. [FLOP/s]"""
        return self.peak.flop_per_s[self.compute_dtype(dtype)]

    def compute_dtype(self, dtype: str) -> str:
        """Type in which products with weights of this dtype are computed."""
        if dtype == "mxfp4" and self.has_fp4:
            dtype = "fp8"  # activations have 8 bits
        return next((name for name in COMPUTE_DTYPES.get(dtype, SIXTEEN_BITS) if name in self.peak.flop_per_s), "float32")

    def ridge_point(self, dtype: str) -> float:
        """Arithmetic intensity above which a pass is compute-bound, from datasheet peaks. [FLOP/byte]"""
        return self.flop_per_s(dtype) / self.peak.memory_bandwidth_bytes_per_s
