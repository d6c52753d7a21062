"""Latency of a forward pass, from its FLOP and bytes and a hardware profile.

The latency is the sum over kernels that run one after the other, as in a CUDA graph: matrix products, attention, all-reduces,
activation traffic, and overheads of the engine per layer and per pass.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property
from typing import Literal, get_args

import numpy as np

from ..hardware.profile import HardwareProfile
from ..kernels.attention import attention_s
from ..kernels.collectives import allreduce_s
from ..kernels.gemm import gemm_s
from .attention_work import Array, AttentionWork, Work
from .forward import Cost, Products

VerifyKernel = Literal["shared_kv_splitkv", "shared_kv_no_split", "per_token"]
VERIFY_KERNELS: tuple[VerifyKernel, ...] = get_args(VerifyKernel)
Bound = Literal["compute", "weights", "kv", "communication", "overhead"]
BOUNDS: tuple[Bound, ...] = get_args(Bound)
STATE_KERNELS = 2  # convolution and update of the state, per layer
EXPERT_LAYER_OVERHEAD = 1.0  # routing about doubles the number of small kernels per layer


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
        overhead_s = overhead_s + kernels * calibration.gemm.launch_s
    layers = cost.num_layers + EXPERT_LAYER_OVERHEAD * cost.num_expert_layers
    one_s = allreduce_s(calibration.allreduce, cost.allreduce_bytes, tensor_parallel, peak.interconnect_bandwidth_bytes_per_s)
    return StepTime(
        compute_s=compute_s,
        weights_s=weights_s,
        kv_s=kv_s,
        communication_s=cost.num_allreduces * one_s,
        overhead_s=overhead_s + layers * engine.layer_overhead_s + engine.step_overhead_s + (engine.cold_pass_s if cold else 0.0),
    )


def _products_s(products: Products, hardware: HardwareProfile) -> tuple[Array, Array, Array]:
    """(compute, memory, overhead) of the products with one matrix, over its layers. [s]"""
    layers = products.matrix.layers
    parts = gemm_s(
        hardware.calibration.gemm,
        rows=products.rows,
        inputs=products.matrix.inputs,
        flop=products.flop / layers,
        moved_bytes=products.bytes / layers,
        flop_per_s=hardware.flop_per_s(products.matrix.dtype),
        bytes_per_s=hardware.peak.memory_bandwidth_bytes_per_s,
    )
    exposed_s, read_s, launch_s = (layers * part for part in parts)
    return exposed_s, read_s, launch_s


def _attention_s(
    work: AttentionWork, hardware: HardwareProfile, dtype: str, verify_kernel: VerifyKernel
) -> tuple[Array, Array, Array]:
    """(compute, KV traffic, overhead) of attention, over its layers. [s]"""
    calibration = hardware.calibration
    reads = work.query_len if verify_kernel == "per_token" else np.ones(())
    parts = attention_s(
        calibration.attention,
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
