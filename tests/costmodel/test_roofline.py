"""Latency of a pass: the sum of its kernels, each from its own law, computed by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from magicdec.costmodel.hardware.profile import Calibration, EngineLaw, HardwareProfile, Peak
from magicdec.costmodel.kernels.attention import AttentionLaw, attention_s
from magicdec.costmodel.kernels.collectives import AllreduceLaw, allreduce_s
from magicdec.costmodel.kernels.experts import ExpertLaw, grouped_law
from magicdec.costmodel.kernels.gemm import GemmLaw
from magicdec.costmodel.models.catalog import resolve_model
from magicdec.costmodel.models.transformer import Matrix, TransformerConfig
from magicdec.costmodel.passes.forward import AttentionWork, Cost, Products, Work, forward_cost
from magicdec.costmodel.passes.roofline import BOUNDS, SCAN_CHUNK_S, VERIFY_KERNELS, StepTime, selection_s, step_time

NO_ATTENTION = AttentionLaw(launch_s=0.0, wave_s=0.0, merge_s=0.0, split_s=0.0, sm_bytes_per_s=1e12, sharpness=12.0)
ROUND = HardwareProfile(
    "round",
    "numbers that divide well",
    Peak({"float32": 1e13, "bfloat16": 1e14, "fp8": 2e14}, 1e12, 8e10, 1e11, 100, 4e7),
    Calibration(
        GemmLaw(launch_s=0.0, depth_s=0.0, compute_efficiency=0.5, memory_efficiency=0.5, sharpness=12.0),
        replace(NO_ATTENTION, memory_efficiency=0.25, compute_efficiency=0.25),
        AllreduceLaw(latency_s=1e-5, peer_latency_s=0.0, one_shot_efficiency=0.5, two_shot_efficiency=0.02),
        EngineLaw(layer_overhead_s=1e-5, step_overhead_s=1e-4),
    ),
)
ONE = np.array(1.0)
NOTHING = Work(np.zeros(()), np.zeros(()))


def with_law(part: str, hardware: HardwareProfile = ROUND, **changes: Any) -> HardwareProfile:
    calibration = hardware.calibration
    changed = replace(getattr(calibration, part), **changes)
    return replace(hardware, calibration=replace(calibration, **{part: changed}))


def product(flop: float, moved: float, dtype: str = "bfloat16", layers: int = 1) -> Products:
    """A product with one row and given FLOP and bytes per layer; all its traffic is activations."""
    outputs = flop / 2 / 4096
    matrix = Matrix("made up", "mlp", outputs, 4096, layers, dtype)
    weights = matrix.bytes / layers
    return Products(matrix, ONE, ONE, (moved - weights) / (outputs + 4096))


def attention(flop: float, moved: float, **changes: Any) -> AttentionWork:
    """Attention over a few hundred sequences that fill the SMs evenly."""
    facts = {"layers": 1, "flop": flop, "bytes": moved, "query_bytes": 0.0, "sequences": 100.0, "kv_heads": 1.0, "query_len": 1.0}
    return AttentionWork(**{**facts, "query_rows": 16.0, "group": 16.0, "read_len": 1000.0, **changes})  # type: ignore[arg-type]


def made(*products: Products, attentions: tuple[AttentionWork, ...] = (), **changes: Any) -> Cost:
    """A pass of one layer on one GPU."""
    idle = attentions or (attention(0.0, 1e-9),)
    facts = {"elementwise": NOTHING, "logits_bytes": 0 * ONE, "allreduce_bytes": ONE, "num_allreduces": 0, "num_layers": 1}
    return Cost(products, idle, **{**facts, "num_expert_layers": 0, **changes})


def priced(cost: Cost, hardware: HardwareProfile = ROUND, dtype: str = "bfloat16", **how: Any) -> StepTime:
    return step_time(cost, hardware, dtype, **how)


def test_a_memory_bound_product_takes_its_bytes_at_the_reached_bandwidth() -> None:
    step = priced(made(product(1e8, 1e9)))
    assert step.weights_s == pytest.approx(1e9 / 0.5e12)
    assert step.compute_s == pytest.approx(0, abs=1e-15)
    assert step.overhead_s == pytest.approx(1e-4 + 1e-5)


def test_a_compute_bound_product_takes_its_flop_at_the_rate_reached_in_its_type() -> None:
    for dtype, rate in (("bfloat16", 1e14), ("fp8", 0.75 * 2e14), ("int4", 1e14), ("float32", 1e13)):
        step = priced(made(product(1e13, 1e10, dtype)))
        assert step.compute_s == pytest.approx(1e13 / (rate * 0.5)), dtype
        assert step.weights_s < 1e-4


def test_products_in_fp8_quantise_their_inputs_first() -> None:
    wide, narrow = (priced(made(product(0.0, 1e10, dtype))) for dtype in ("bfloat16", "fp8"))
    assert narrow.overhead_s - wide.overhead_s == pytest.approx(1e-6)
    assert narrow.weights_s - wide.weights_s == pytest.approx(3 * 4096 / (1e12 * 0.5))


def test_weights_in_fp4_are_computed_in_what_the_machine_has() -> None:
    fp4 = replace(ROUND, peak=replace(ROUND.peak, flop_per_s={**ROUND.peak.flop_per_s, "fp4": 4e14}))
    assert [(one.compute_dtype("nvfp4"), one.compute_dtype("mxfp4")) for one in (ROUND, fp4)] == [
        ("bfloat16", "bfloat16"),
        ("fp4", "fp8"),
    ]


def test_packed_weights_of_experts_reach_the_rate_of_older_gpus() -> None:
    law, single = ExpertLaw(packed_flop_per_s=1e12, packed_efficiency=0.6), GemmLaw()
    reached = [grouped_law(law, single, "int4", has_fp4=False, sm_flop_per_s=rate).compute_efficiency for rate in (1e12, 4e12)]
    assert reached == [0.6, 0.25]


def test_attention_is_computed_in_the_type_of_the_activations() -> None:
    cost = made(attentions=(attention(1e12, 1e6),))
    assert priced(cost).compute_s == pytest.approx(1e12 / 0.25e14, rel=1e-6)
    assert priced(cost, dtype="float32").compute_s == pytest.approx(10 * float(priced(cost).compute_s), rel=1e-6)


def test_attention_takes_its_bytes_at_the_rate_it_reaches() -> None:
    assert priced(made(attentions=(attention(1.0, 1e9),))).kv_s == pytest.approx(1e9 / 0.25e12, rel=1e-6)


def test_without_overlap_arithmetic_and_traffic_add_up() -> None:
    serial = with_law("attention", with_law("gemm", sharpness=1.0), sharpness=1.0, sm_bytes_per_s=1e18)
    step = priced(made(product(1e12, 1e9), attentions=(attention(1e11, 1e9),)), serial)
    assert step.weights_s == pytest.approx(1e9 / 0.5e12)
    assert step.kv_s == pytest.approx(1e9 / 0.25e12, rel=1e-6)
    assert step.compute_s == pytest.approx(1e12 / 0.5e14 + 1e11 / 0.25e14)


def test_products_do_not_hide_behind_one_another() -> None:
    computing, reading = product(1e13, 1e6), product(1e6, 1e10)
    together = priced(made(computing, reading))
    assert together.compute_s == pytest.approx(float(priced(made(computing)).compute_s))
    assert together.weights_s == pytest.approx(float(priced(made(reading)).weights_s), rel=1e-4)


def test_layers_of_a_matrix_are_as_many_products() -> None:
    launched = with_law("gemm", launch_s=1e-6)
    one, many = (priced(made(product(1e8, 1e9, layers=layers)), launched) for layers in (1, 10))
    assert many.weights_s == pytest.approx(10 * float(one.weights_s))
    assert many.overhead_s - one.overhead_s == pytest.approx(9e-6)


def test_layers_of_a_reach_are_as_many_calls() -> None:
    launched = with_law("attention", launch_s=1e-6)
    one, many = (priced(made(attentions=(attention(0.0, 1e9 * n, layers=n),)), launched) for n in (1, 10))
    assert many.kv_s == pytest.approx(10 * float(one.kv_s))
    assert many.overhead_s - one.overhead_s == pytest.approx(9e-6)


def test_activations_and_logits_are_traffic_at_the_rate_of_products() -> None:
    elementwise = Work(np.zeros(()), np.array(1e9))
    assert priced(made(elementwise=elementwise)).weights_s == pytest.approx(1e9 / 0.5e12)
    once = with_law("engine", logit_passes=1.0)
    assert priced(made(logits_bytes=np.array(1e9)), once).weights_s == pytest.approx(1e9 / 0.5e12)
    again = with_law("engine", logit_passes=5.0)
    assert priced(made(logits_bytes=np.array(1e9)), again).weights_s == pytest.approx(5e9 / 0.5e12)


def test_layers_with_experts_launch_kernels_around_the_products() -> None:
    plain, routed = (priced(made(num_layers=10, num_expert_layers=number)).overhead_s for number in (0, 6))
    assert routed - plain == pytest.approx(6 * ExpertLaw().launch_s)


def test_the_bound_is_the_largest_part() -> None:
    assert str(priced(made(product(1e13, 1e9))).bound) == "compute"
    assert str(priced(made(product(1e6, 1e9))).bound) == "weights"
    assert str(priced(made(attentions=(attention(0.0, 1e9),))).bound) == "kv"
    assert str(priced(made()).bound) == "overhead"
    far = made(num_allreduces=100)
    assert str(priced(far, tensor_parallel=2).bound) == "communication"
    assert set(priced(far).parts) == set(BOUNDS)


def test_a_pass_pays_for_two_allreduces_a_layer(llama: TransformerConfig, a100: HardwareProfile) -> None:
    cost = forward_cost(llama, batch_size=16, query_len=1, context_len=8000, tensor_parallel=8)
    step = step_time(cost, a100, "bfloat16", tensor_parallel=8)
    one_s = float(allreduce_s(a100.calibration.allreduce, 16 * 4096 * 2.0, 8, a100.peak.interconnect_bandwidth_bytes_per_s))
    assert step.communication_s == pytest.approx(2 * 32 * one_s)
    alone = step_time(forward_cost(llama, batch_size=16, query_len=1, context_len=8000), a100, "bfloat16")
    assert alone.communication_s == 0


def test_a_pass_is_the_sum_of_its_kernels(llama: TransformerConfig, a100: HardwareProfile) -> None:
    """Attention, product by product, all-reduces, activations, logits and overheads, all from the laws themselves."""
    from magicdec.costmodel.kernels.gemm import gemm_s

    cost = forward_cost(llama, batch_size=16, query_len=3, context_len=8000, tensor_parallel=8)
    calibration, peak = a100.calibration, a100.peak
    rates: dict[str, Any] = {"flop_per_s": 3.12e14, "bytes_per_s": 2.039e12}
    streamed = 2.039e12 * calibration.gemm.memory_efficiency
    total = float(cost.elementwise.bytes + calibration.engine.logit_passes * cost.logits_bytes) / streamed
    for p in cost.products:
        layers = p.matrix.layers
        one = gemm_s(calibration.gemm, rows=48, inputs=p.matrix.inputs, flop=p.flop / layers, moved_bytes=p.bytes / layers, **rates)
        total += layers * float(sum(one))
    one = attention_s(
        calibration.attention,
        sequences=16,
        kv_heads=1,
        query_rows=12,
        group=4,
        read_len=8003,
        flop=16 * 4 * 128 * 4 * (3 * 8000 + 6),
        kv_bytes=16 * 8003 * 512,
        query_bytes=16 * 3 * 4 * 128 * 2 * 2,
        num_sms=108,
        **rates,
    )
    reduced = allreduce_s(calibration.allreduce, 48 * 4096 * 2.0, 8, peak.interconnect_bandwidth_bytes_per_s)
    total += 32 * float(sum(one)) + 64 * float(reduced)
    total += 32 * calibration.engine.layer_overhead_s + calibration.engine.step_overhead_s
    assert step_time(cost, a100, "bfloat16", tensor_parallel=8).total_s == pytest.approx(total, rel=1e-12)


def test_reading_the_cache_once_a_token_costs_verification_that_much_more(llama: TransformerConfig) -> None:
    cost = forward_cost(llama, batch_size=16, query_len=[1, 2, 5], context_len=32_000)
    memory_only = with_law("attention", sm_bytes_per_s=1e18, ctas_per_sm=1)
    shared, per_token = (step_time(cost, memory_only, "bfloat16", verify_kernel=kernel) for kernel in VERIFY_KERNELS[::2])
    assert per_token.kv_s / shared.kv_s == pytest.approx([1, 2, 5], rel=0.05)
    assert per_token.total_s[0] == shared.total_s[0]
    assert (per_token.total_s[1:] > shared.total_s[1:]).all()


def test_a_kernel_that_does_not_split_leaves_processors_idle_at_small_batch(
    llama: TransformerConfig, a100: HardwareProfile
) -> None:
    cost = forward_cost(llama, batch_size=[[1], [64]], query_len=[1, 5], context_len=32_000)
    split, whole = (step_time(cost, a100, "bfloat16", verify_kernel=kernel).kv_s for kernel in VERIFY_KERNELS[:2])
    ratio = whole / split
    assert ratio[:, 0].tolist() == [1, 1], "decoding splits all the same"
    assert ratio[0, 1] > 5
    assert ratio[1, 1] == 1


def test_choosing_entries_takes_its_traffic_or_arithmetic_and_its_launches() -> None:
    hardware = with_law("gemm", launch_s=1e-6)
    reading, computing = Work(np.array(1e6), np.array(1e9)), Work(np.array(1e12), np.array(1e3))
    assert selection_s(reading, hardware, "bfloat16", 64) == pytest.approx(1e9 / 0.25e12 + 64e-6)
    assert selection_s(computing, hardware, "bfloat16", 0) == pytest.approx(1e12 / 0.25e14)
    assert selection_s(NOTHING, hardware, "bfloat16", 0) == 0


def test_a_prompt_scans_its_chunks_one_after_the_other() -> None:
    model = resolve_model("Qwen3.5-27B")
    one, two, eight = (
        step_time(forward_cost(model, batch_size=b, query_len=6400, context_len=0, logits_len=1), ROUND, model.dtype).compute_s
        for b in (1, 2, 8)
    )
    assert two - one < eight - two, "heads of two sequences fit on the SMs side by side, those of eight do not"
    assert one > 48 * 100 * SCAN_CHUNK_S


def test_prompts_have_larger_blocks_than_decoding() -> None:
    small = with_law("attention", tile_rows=16, wave_s=1e-6)
    work = attention(0.0, 1e6, sequences=1.0, query_rows=16.0 * 3200)
    times = {length: priced(made(attentions=(replace(work, query_len=np.array(length)),)), small).kv_s for length in (63.0, 64.0)}
    assert times[64.0] < times[63.0] / 4
