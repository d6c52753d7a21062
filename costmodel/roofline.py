"""Prices: counts and a hardware profile give seconds. Knows no model.

time = sum over operator classes of the larger of compute and memory time, plus what of the smaller does not hide behind it,
plus collectives, plus overhead per layer and per pass. Classes do not overlap one another, as under CUDA graphs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike

from costmodel.forward import MATRIX_CLASSES, Array, Cost, Work
from costmodel.hardware import HardwareProfile

VerifyKernel = Literal["shared_kv_splitkv", "shared_kv_no_split", "per_token"]
VERIFY_KERNELS: tuple[VerifyKernel, ...] = get_args(VerifyKernel)
BOUNDS = ("compute", "weights", "kv", "communication", "overhead")


@dataclass(frozen=True)
class StepTime:
    """Time of one pass by what it is spent on; the parts add up to `total_s`. [s]

    Attributes:
        compute_s: Arithmetic that does not hide behind memory traffic.
        weights_s: Reading weights and activations.
        kv_s: Reading and writing KV entries.
        communication_s: Collectives.
        overhead_s: Launches and gaps.
    """

    compute_s: Array
    weights_s: Array
    kv_s: Array
    communication_s: Array
    overhead_s: Array

    @property
    def total_s(self) -> Array:
        """The whole pass. [s]"""
        return self.compute_s + self.weights_s + self.kv_s + self.communication_s + self.overhead_s

    @property
    def bound(self) -> np.ndarray[tuple[int, ...], np.dtype[np.str_]]:
        """What takes the largest part, one of `BOUNDS`."""
        parts = np.stack(np.broadcast_arrays(*self.parts.values()))
        return np.asarray(np.array(BOUNDS)[parts.argmax(axis=0)])

    @property
    def parts(self) -> dict[str, Array]:
        """The parts by the name of their bound. [s]"""
        return {name: getattr(self, f"{name}_s") for name in BOUNDS}


def step_time(
    cost: Cost,
    hardware: HardwareProfile,
    dtype: str,
    *,
    tensor_parallel: int = 1,
    verify_kernel: VerifyKernel = "shared_kv_splitkv",
) -> StepTime:
    """Seconds of one pass.

    Args:
        cost: Counts of the pass on one GPU.
        hardware: That GPU.
        dtype: Operand type of the matrix products.
        tensor_parallel: GPUs in the pass.
        verify_kernel: How attention with several queries reads the cache: once for all of them, with the KV of a sequence
            split over processors or not; or once per token.

    Returns:
        The parts of the pass, broadcast like the counts. [s]

    Source:
        Williams et al., Roofline (2009); MagicDec (arXiv 2408.11049), section 3.
    """
    calibration, peak = hardware.calibration, hardware.peak
    flop_per_s = hardware.flop_per_s(dtype)
    bytes_per_s = peak.memory_bandwidth_bytes_per_s

    compute_s = weights_s = np.zeros_like(cost.read_len)
    for name in MATRIX_CLASSES:
        work: Work = getattr(cost, name)
        matrix_compute_s, matrix_memory_s = _exposed(
            work.flop / (flop_per_s * calibration.compute_efficiency),
            work.bytes / (bytes_per_s * calibration.memory_efficiency),
            calibration.overlap,
        )
        compute_s, weights_s = compute_s + matrix_compute_s, weights_s + matrix_memory_s
    weights_s = weights_s + cost.elementwise.bytes / (bytes_per_s * calibration.memory_efficiency)

    reads = cost.query_len if verify_kernel == "per_token" else 1.0
    splits = calibration.splits_kv & ((cost.query_len <= 1) | (verify_kernel != "shared_kv_no_split"))
    balance = processor_balance(cost.attention_blocks, peak.num_sms, splits)
    padding = padded_rows(cost.query_rows, calibration.query_tiles) / cost.query_rows
    attention_compute_s, kv_s = _exposed(
        cost.attention.flop * padding / (flop_per_s * calibration.attention_compute_efficiency * balance),
        cost.attention.bytes * reads / (bytes_per_s * calibration.attention_memory_efficiency * balance),
        calibration.overlap,
    )

    return StepTime(
        compute_s=compute_s + attention_compute_s,
        weights_s=weights_s,
        kv_s=kv_s,
        communication_s=cost.num_allreduces * allreduce_s(cost.allreduce_bytes, hardware, tensor_parallel),
        overhead_s=calibration.layer_overhead_s * cost.num_layers + calibration.step_overhead_s + 0 * kv_s,
    )


def _exposed(compute_s: Array, memory_s: Array, overlap: float) -> tuple[Array, Array]:
    """What each adds to the total: the larger in full, of the smaller what is not hidden."""
    rest = 1 - overlap
    computing = compute_s > memory_s
    return np.where(computing, compute_s, rest * compute_s), np.where(computing, rest * memory_s, memory_s)


def processor_balance(blocks: Array, num_sms: int, splits_kv: ArrayLike) -> Array:
    """Share of the processors that work, on average, while attention runs. [0-1]

    A kernel that splits long KV keeps all of them busy while there are fewer than two (sequence, KV head) blocks per
    processor; beyond, or without splitting, blocks run in whole waves and the last one is partly empty.
    """
    waves = blocks / (num_sms * np.ceil(blocks / num_sms))
    return np.where(np.asarray(splits_kv) & (blocks < 2 * num_sms), 1.0, waves)


def padded_rows(rows: Array, tiles: tuple[int, ...]) -> Array:
    """Query rows that are computed for `rows` wanted: the next tile, or a multiple of the largest; a single one is not padded."""
    padded = np.ceil(rows / tiles[-1]) * tiles[-1]
    for tile in reversed(tiles[:-1]):
        padded = np.where(rows <= tile, tile, padded)
    return np.where(rows <= 1, rows, padded)


def allreduce_s(payload_bytes: Array, hardware: HardwareProfile, num_gpus: int) -> Array:
    """One all-reduce: latency plus what a GPU reads from its peers, in one exchange or two. [s]

    Source:
        The intra-node algorithms of PyTorch (one-shot up to 256 KiB, two-shot above), which the calibration data ran on.
    """
    if num_gpus == 1:
        return 0 * payload_bytes
    calibration = hardware.calibration
    bytes_per_s = hardware.peak.interconnect_bandwidth_bytes_per_s * calibration.interconnect_efficiency
    peers_s = (num_gpus - 1) * payload_bytes / bytes_per_s
    one_shot_s = calibration.allreduce_latency_s + peers_s
    two_shot_s = calibration.allreduce_latency_s * calibration.two_shot_latency_factor + peers_s * 2 / num_gpus
    return np.where(payload_bytes <= calibration.one_shot_bytes, np.minimum(one_shot_s, two_shot_s), two_shot_s)
