"""Latency of a forward pass, from its FLOP and bytes and a hardware profile.

The latency is the sum over kernels that run one after the other, as in a CUDA graph: matrix products, attention, all-reduces,
activation traffic, and overheads of the engine per layer and per pass.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Literal, get_args

import numpy as np

from ..hardware.profile import HardwareProfile
from ..kernels.attention import AttentionLaw, attention_s
from ..kernels.collectives import allreduce_s
from ..kernels.experts import grouped_law
from ..kernels.gemm import gemm_s
from ..kernels.quantised import PLAIN_TYPES, quantised_s
from .attention_work import Array, AttentionWork, Work
from .forward import Cost, Products

VerifyKernel = Literal["shared_kv_splitkv", "shared_kv_no_split", "per_token"]
VERIFY_KERNELS: tuple[VerifyKernel, ...] = get_args(VerifyKernel)
Bound = Literal["compute", "weights", "kv", "communication", "overhead"]
BOUNDS: tuple[Bound, ...] = get_args(Bound)
# Products in 8 and 4 bits, on any GPU: a kernel quantises the inputs first, and less of the higher peak is reached.
QUANTISED = ("fp8", "fp4", "int8")
QUANTISED_EFFICIENCY = 0.75  # relative to 16 bits
QUANTISE_LAUNCH_S = 1e-6  # kernels alone take 3 us; the overhead per layer has most of that
QUANTISE_BYTES = 3.0  # per element: 2 read, 1 written
SCAN_CHUNK_S = 6e-6  # one head's chunk of 64 tokens on one SM; what the next chunk needs is known only then
PROMPT_LEN = 64  # new tokens from which a kernel for prompts is used
PROMPT_TILE_ROWS = 128  # query rows per block of such a kernel
STATE_KERNELS = 2  # convolution and update of the state, per layer


@dataclass(frozen=True)
class StepTime:
    """Time of one pass by bottleneck; the parts add up to `total_s`. [s]

    Attributes:
        compute_s: Compute time that is not hidden by memory traffic.
        weights_s: Reading weights and activations.
        kv_s: Reading and writing KV entries and recurrent states.
        communication_s: All-reduces.
        overhead_s: Kernel launches and gaps.
    """

    compute_s: Array
    weights_s: Array
    kv_s: Array
    communication_s: Array
    overhead_s: Array

    @cached_property
    def total_s(self) -> Array:
        """Time of the pass. [s]"""
        return self.compute_s + self.weights_s + self.kv_s + self.communication_s + self.overhead_s

    @property
    def bound(self) -> np.ndarray[tuple[int, ...], np.dtype[np.str_]]:
        """The largest part, one of `BOUNDS`."""
        parts = np.stack(np.broadcast_arrays(*self.parts.values()))
        return np.asarray(np.array(BOUNDS)[parts.argmax(axis=0)])

    @property
    def parts(self) -> dict[str, Array]:
        """Time of each part, by the names in `BOUNDS`. [s]"""
        times = (self.compute_s, self.weights_s, self.kv_s, self.communication_s, self.overhead_s)
        return dict(zip(BOUNDS, times, strict=True))


NO_TIME = StepTime(*(np.zeros(()) for _ in fields(StepTime)))


def step_time(
    cost: Cost,
    hardware: HardwareProfile,
    dtype: str,
    *,
    tensor_parallel: int = 1,
    verify_kernel: VerifyKernel = "shared_kv_splitkv",
    cold: bool = True,
) -> StepTime:
    """Latency of one pass, by part; arrays broadcast. [s]

    Args:
        cost: FLOP and bytes of the pass on one GPU.
        hardware: Profile of the GPU.
        dtype: Dtype of the activations.
        tensor_parallel: GPUs that share the pass.
        verify_kernel: How attention with several queries per sequence reads the KV cache: once for all queries, with or
            without split-KV, or once per query.
        cold: Other passes have filled the caches; false for a draft step after another one.

    Source:
        Williams et al., Roofline (2009); MagicDec (arXiv 2408.11049), section 3. Kernel laws: docs/method.md.
    """
    calibration, peak = hardware.calibration, hardware.peak
    engine = calibration.engine
    bytes_per_s = peak.memory_bandwidth_bytes_per_s * calibration.gemm.memory_efficiency
    compute_s, weights_s = np.zeros(()), (cost.elementwise.bytes + engine.logit_passes * cost.logits_bytes) / bytes_per_s
    kv_s, overhead_s = np.zeros(()), np.zeros(())
    for products in cost.products:
        exposed_s, read_s, launch_s = _products_s(products, hardware)
        compute_s, weights_s, overhead_s = compute_s + exposed_s, weights_s + read_s, overhead_s + launch_s
    for work in cost.attentions:
        exposed_s, read_s, launch_s = _attention_s(work, hardware, dtype, verify_kernel)
        compute_s, kv_s, overhead_s = compute_s + exposed_s, kv_s + read_s, overhead_s + launch_s
    if cost.num_state_layers:
        kernels = cost.num_state_layers * STATE_KERNELS
        kv_s = kv_s + selection_s(cost.state, hardware, dtype, 0)
        for scan in cost.scans:
            compute_s = compute_s + scan.layers * SCAN_CHUNK_S * scan.chunks * np.ceil(scan.heads / peak.num_sms)
        overhead_s = overhead_s + kernels * calibration.gemm.launch_s + cost.num_state_layers * engine.state_update_s
        if engine.state_verify_s:
            overhead_s = overhead_s + np.where(cost.query_len > 1, cost.num_state_layers * engine.state_verify_s, 0.0)
    overhead_s = overhead_s + cost.num_expert_layers * calibration.experts.launch_s
    if engine.several_rows_s:
        overhead_s = overhead_s + np.where(cost.products[0].rows > 1, cost.num_layers * engine.several_rows_s, 0.0)
    one_s = allreduce_s(calibration.allreduce, cost.allreduce_bytes, tensor_parallel, peak.interconnect_bandwidth_bytes_per_s)
    return StepTime(
        compute_s=compute_s,
        weights_s=weights_s,
        kv_s=kv_s,
        communication_s=cost.num_allreduces * one_s,
        overhead_s=overhead_s
        + cost.num_layers * engine.layer_overhead_s
        + engine.step_overhead_s
        + (engine.cold_pass_s if cold else 0.0),
    )


def _products_s(products: Products, hardware: HardwareProfile) -> tuple[Array, Array, Array]:
    """(compute, memory, overhead) of the products with one matrix, over its layers. [s]"""
    layers, dtype = products.matrix.layers, products.matrix.dtype
    own = hardware.calibration.quantised
    if own is not None and dtype not in PLAIN_TYPES:
        few = quantised_s(
            own,
            rows=products.rows,
            flop=products.flop / layers,
            moved_bytes=products.bytes / layers,
            vector_flop_per_s=hardware.peak.flop_per_s["float32"],
            matrix_flop_per_s=hardware.flop_per_s("int8"),  # batched kernels multiply unpacked integers
            bytes_per_s=hardware.peak.memory_bandwidth_bytes_per_s,
        )
        exposed_s, read_s, launch_s = (layers * part for part in few)
        return exposed_s, read_s, launch_s
    law, rate = hardware.calibration.gemm, hardware.flop_per_s(dtype)
    quantised = hardware.compute_dtype(dtype) in QUANTISED
    if grouped := products.matrix.experts > 1:
        sm_rate = rate / hardware.peak.num_sms
        law = grouped_law(hardware.calibration.experts, law, dtype, has_fp4=hardware.has_fp4, sm_flop_per_s=sm_rate)
    elif quantised:
        efficiency = law.compute_efficiency * QUANTISED_EFFICIENCY
        law = replace(law, compute_efficiency=efficiency, launch_s=law.launch_s + QUANTISE_LAUNCH_S)
    parts = gemm_s(
        law,
        rows=products.rows,
        inputs=products.matrix.inputs,
        flop=products.flop / layers,
        moved_bytes=products.bytes / layers,
        flop_per_s=rate,
        bytes_per_s=hardware.peak.memory_bandwidth_bytes_per_s,
    )
    exposed_s, read_s, launch_s = (layers * part for part in parts)
    if grouped or quantised:  # rows are gathered before the products and added up after them, or quantised, by other kernels
        moved = products.activation_bytes if grouped else layers * products.rows * (QUANTISE_BYTES * products.matrix.inputs)
        read_s = read_s + moved / (hardware.peak.memory_bandwidth_bytes_per_s * hardware.calibration.gemm.memory_efficiency)
    return exposed_s, read_s, launch_s


def _attention_s(
    work: AttentionWork, hardware: HardwareProfile, dtype: str, verify_kernel: VerifyKernel
) -> tuple[Array, Array, Array]:
    """(compute, KV traffic, overhead) of attention, over its layers. [s]"""
    calibration = hardware.calibration
    other = calibration.verify_attention
    if other is not None and np.any(work.query_len > 1):
        several = _law_s(other, work, hardware, dtype, verify_kernel)
        if np.all(work.query_len > 1):
            return several
        one = _law_s(calibration.attention, work, hardware, dtype, verify_kernel)
        exposed_s, read_s, launch_s = (np.where(work.query_len > 1, b, a) for a, b in zip(one, several, strict=True))
        return exposed_s, read_s, launch_s
    return _law_s(calibration.attention, work, hardware, dtype, verify_kernel)


def _law_s(
    law: AttentionLaw, work: AttentionWork, hardware: HardwareProfile, dtype: str, verify_kernel: VerifyKernel
) -> tuple[Array, Array, Array]:
    """The same with one law. [s]"""
    reads = work.query_len if verify_kernel == "per_token" else np.ones(())
    parts = attention_s(
        law,
        sequences=work.sequences * reads,
        kv_heads=work.kv_heads,
        query_rows=work.query_rows / reads,
        group=work.group,
        read_len=work.read_len,
        flop=work.flop / work.layers,
        kv_bytes=work.bytes / work.layers * reads,
        query_bytes=work.query_bytes / work.layers,
        flop_per_s=hardware.flop_per_s(work.dtype or dtype),
        bytes_per_s=hardware.peak.memory_bandwidth_bytes_per_s,
        num_sms=hardware.peak.num_sms,
        may_split=(work.query_len <= 1) | (verify_kernel != "shared_kv_no_split"),
        tile_rows=np.where(work.query_len >= PROMPT_LEN, np.maximum(PROMPT_TILE_ROWS, law.tile_rows), law.tile_rows),
    )
    exposed_s, read_s, launch_s = (work.layers * part for part in parts)
    return exposed_s, read_s, launch_s


def selection_s(work: Work, hardware: HardwareProfile, dtype: str, num_kernels: int) -> Array:
    """Latency of selecting KV entries, with the efficiencies of attention. [s]

    Args:
        work: FLOP and bytes of the selection on one GPU.
        hardware: Profile of the GPU.
        dtype: Dtype of the activations.
        num_kernels: Kernels launched.
    """
    law = hardware.calibration.attention
    traffic_s = work.bytes / (hardware.peak.memory_bandwidth_bytes_per_s * law.memory_efficiency)
    compute_s = work.flop / (hardware.flop_per_s(dtype) * law.compute_efficiency)
    return np.maximum(traffic_s, compute_s) + num_kernels * hardware.calibration.gemm.launch_s
